"""A session on a model in training restores everything that it changes."""

import copy
import random

import numpy as np
import pytest
import torch

from streamingvlm.errors import VideoError
from streamingvlm.evaluation.held_out import lend_to_session, stream_held_out
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, reference_line, render
from streamingvlm.training.adapters import LoraSettings, with_lora_
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import example_from
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.turns import Turn, TurnFormat
from streamingvlm.video.encoder import write_video
from streamingvlm.video.reader import open_video

START, NUM_TURNS = 3, 8


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Some seconds of a match, in the middle of a file, with what was said of them."""
    path = tmp_path_factory.mktemp("video") / "match.mp4"
    match = Match(1007)
    seconds = [second for second, _ in zip(match.seconds(), range(START + NUM_TURNS), strict=False)]
    frames = [frame.permute(1, 2, 0).numpy() for second in seconds for frame in render(second, size=448)]
    write_video(path, frames, fps=2)
    return {
        "id": "match 1007",
        "video": str(path),
        "start_s": float(START),
        "num_turns": NUM_TURNS,
        "lines": [reference_line(second) for second in seconds[START:]],
        "previous_text": match.intro,
        "query": "",
    }


@pytest.fixture
def model():
    return load_model("pitch", device="cpu")


def learn_(model, mean_loss, num_steps=2):
    """A few steps of training on anything; returns the losses."""
    turns = TurnFormat(model.tokenizer, temporal_step=2.0)
    second = Turn(0, 0, 1, (1, 4, 4))
    tokens = turns.prologue("before") + turns.open_turn(second) + turns.reply(second, "shot")
    batch = Collate(0)([example_from("chunk", tokens, torch.ones(16, 256))])
    module = SFTModel(model.hf)
    optimizer = torch.optim.SGD([weight for weight in module.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        losses.append(mean_loss(module, batch))
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def test_it_says_what_a_session_on_the_same_weights_says(model, recording):
    streamed = stream_held_out(model, recording)
    session = StreamingSession.from_pretrained("pitch", device="cpu", previous_text=recording["previous_text"])
    with open_video(recording["video"], start_s=START) as reader:
        said = [session.step(second).text for second, _ in zip(reader, range(NUM_TURNS), strict=False)]
    assert [line.said for line in streamed.lines] == said
    assert [line.truth for line in streamed.lines] == recording["lines"]
    assert [line.start_s for line in streamed.lines] == list(range(START, START + NUM_TURNS))
    # The model knows its trade, so the two columns agree but for a second or two.
    assert sum(line.said == line.truth for line in streamed.lines) >= NUM_TURNS - 2


def test_it_is_a_table_for_people(model, recording):
    rows = str(stream_held_out(model, recording, max_turns=3)).splitlines()
    assert rows[0] == "match 1007:" and rows[1].split() == ["second", "said", "truth"]
    assert len(rows) == 5


def states(hf):
    return (
        [(name, module.training) for name, module in hf.named_modules()],
        hf.config.text_config._attn_implementation,
        hf.config.vision_config._attn_implementation,
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_modes_and_random_states_come_back(recording, attention):
    model = load_model("pitch", device="cpu", attention=attention)
    model.hf.train()
    model.hf.model.visual.eval()
    before = states(model.hf)
    stream_held_out(model, recording, max_turns=2, sampling={"temperature": 1.0})
    assert states(model.hf) == before


def test_they_come_back_after_a_failure_too(model, recording):
    model.hf.train()
    before = states(model.hf)
    with pytest.raises(VideoError, match="absent"):
        stream_held_out(model, {**recording, "video": "absent.mp4"})
    assert states(model.hf) == before


@pytest.mark.parametrize("is_lora", [False, True])
def test_training_goes_on_as_if_nothing_had_been(recording, mean_loss, is_lora):
    losses = []
    for listens in (False, True):
        torch.manual_seed(0)
        model = load_model("pitch", device="cpu")
        if is_lora:
            with_lora_(model, LoraSettings(rank=4, dropout=0.1))
        model.hf.train()
        curve = learn_(model, mean_loss)
        if listens:
            stream_held_out(model, recording, max_turns=3)
        losses.append(curve + learn_(model, mean_loss, 3))
    assert losses[0] == losses[1]


def test_gradients_in_waiting_are_left_alone(model, recording, mean_loss):
    learn_(model, mean_loss)
    before = copy.deepcopy([weight.grad for weight in model.hf.parameters()])
    stream_held_out(model, recording, max_turns=2)
    for weight, grad in zip(model.hf.parameters(), before, strict=True):
        assert (weight.grad is None) == (grad is None)
        assert grad is None or torch.equal(weight.grad, grad)


def test_it_uses_the_current_weights(model, recording):
    assert any(line.said for line in stream_held_out(model, recording, max_turns=4).lines)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.tokenizer.convert_tokens_to_ids("<|im_end|>")] = 0.0
    silent = stream_held_out(model, recording, max_turns=4)
    with lend_to_session(model) as lent:
        assert torch.equal(lent.logits(torch.ones(1, 256)), torch.zeros(1, lent.lm_head.weight.shape[0]))
    assert [line.said for line in silent.lines] != recording["lines"][:4]


def test_a_recording_that_ends_early_is_named(model, recording):
    with pytest.raises(VideoError, match=r"ends after 8 of 9 turns"):
        stream_held_out(model, {**recording, "lines": [*recording["lines"], "more"]})
