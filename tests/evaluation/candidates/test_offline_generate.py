"""Offline generation against transformers' full forward pass over the same frames and text."""

from itertools import islice

import pytest
import torch

from streamingvlm.config import VideoConfig
from streamingvlm.errors import CheckpointError, ConfigError
from streamingvlm.evaluation.candidates.offline_generate import OfflineGeneration
from streamingvlm.evaluation.candidates.opening import candidate_from
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.pitch import Match, render
from streamingvlm.video.encoder import write_video

VIDEO = VideoConfig(min_pixels=1, max_pixels=56 * 56)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "match.mp4"
    pictures = [picture for second in islice(Match(3).seconds(), 6) for picture in render(second, size=112)]
    write_video(path, [picture.permute(1, 2, 0).numpy() for picture in pictures], fps=2)
    return path


def candidate(folder, **settings) -> OfflineGeneration:
    model = load_model(folder, device="cpu")
    model.tokenizer.chat_template = CHAT_TEMPLATE
    return OfflineGeneration(model, **{"video": VIDEO, "num_frames": 4, "max_new_tokens": 6, **settings})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_answer_is_the_likeliest_after_the_frames_and_the_words(tiny_checkpoint, match, model_type):
    ordinary = candidate(tiny_checkpoint(model_type))
    answer = ordinary.answer(Clip(match, 0.0, 5.0), "Who has the ball?")
    assert answer == greedy(ordinary, list(Clip(match, 0.0, 5.0).turns(VIDEO)), "Who has the ball?")
    assert ordinary.path == "offline generation"


def greedy(ordinary, seconds, question) -> str:
    """Token by token, each from a whole pass of its own without a cache."""
    model = ordinary.model
    frames = torch.cat([second.frames for second in seconds])[[2, 4, 7, 9]]
    pixels, grid = preprocess(frames, family=model.family, min_pixels=1, max_pixels=56 * 56)
    num_tokens = grid[1] * grid[2] // 4
    encode = model.tokenizer.encode
    pads = "<|vision_start|>" + "<|video_pad|>" * num_tokens * (1 if model.family.model_type == "qwen3_vl" else 2)
    text = f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    if model.family.model_type == "qwen3_vl":
        # Frames every 1.25 s: the mean times of the first two and of the last two.
        prompt = f"<|im_start|>user\n<0.6 seconds>{pads}<|vision_end|><3.1 seconds>{pads}{text}"
    else:
        prompt = f"<|im_start|>user\n{pads}{text}"
    ids, said = encode(prompt), []
    while len(said) < 6:
        whole = torch.tensor([ids + said])
        with torch.inference_mode():
            logits = model.hf(
                input_ids=whole,
                mm_token_type_ids=2 * (whole == encode("<|video_pad|>")[0]),
                pixel_values_videos=pixels,
                video_grid_thw=torch.tensor([grid]),
                second_per_grid_ts=torch.tensor([2.5]),
            ).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(said, skip_special_tokens=True).strip()


def test_frames_are_spread_over_the_clip_and_none_is_after_its_end(tiny_checkpoint, match):
    ordinary = candidate(tiny_checkpoint(), num_frames=3)
    whole = torch.cat([second.frames for second in Clip(match).turns(VIDEO)])
    frames, start_s, end_s = ordinary._read_frames(Clip(match, 0.0, 3.2))
    assert (start_s, end_s) == (0.0, 4.0)
    assert torch.equal(frames, whole[[2, 6, 6]]), "the newest that was there is held to the end of its turn"


def test_a_clip_of_one_frame_is_answered(tiny_checkpoint, match):
    assert isinstance(candidate(tiny_checkpoint()).answer(Clip(match, 0.0, 0.03), "Who?"), str)


def test_a_checkpoint_without_a_chat_template_is_refused(tiny_checkpoint):
    with pytest.raises(CheckpointError, match="chat template"):
        OfflineGeneration(load_model(tiny_checkpoint(), device="cpu"))


def test_a_chat_template_without_a_place_for_a_video_is_refused(tiny_checkpoint, match):
    ordinary = candidate(tiny_checkpoint())
    ordinary.model.tokenizer.chat_template = "{{ messages[0].content[1].text }}"
    with pytest.raises(CheckpointError, match="one video"):
        ordinary.answer(Clip(match, 0.0, 1.0), "Who?")


def test_it_does_not_comment(tiny_checkpoint, match):
    with pytest.raises(ConfigError, match="candidate=session"):
        candidate(tiny_checkpoint()).comment(Clip(match))


def test_it_is_made_from_options(tiny_checkpoint):
    model = {"name": str(tiny_checkpoint()), "device": "cpu"}
    with pytest.raises(CheckpointError, match="chat template"):
        candidate_from({"kind": "offline_generate", "model": model})
    with pytest.raises(ConfigError, match="num_frames"):
        candidate_from({"kind": "offline_generate", "model": model, "num_frames": 0})
