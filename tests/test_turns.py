"""The turn formats: the released checkpoint's, and the one of Qwen3-VL's processor."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_inputs import tiny_tokenizer
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.config import TURN_FORMATS, VideoConfig
from streamingvlm.model.family import FAMILIES
from streamingvlm.turns import Turn, TurnFormat

TOKENIZER = tiny_tokenizer()


def turns_of(model_type: str, tokenizer=TOKENIZER, **video) -> TurnFormat:
    return TurnFormat.of(tokenizer, FAMILIES[model_type], VideoConfig(**video))


def text_of(turns: TurnFormat, tokens) -> str:
    return turns.tokenizer.decode(list(tokens.ids), skip_special_tokens=False)


def as_processed(grid, frame_indices: list[int], fps: float) -> str:
    """The text that transformers' processor of Qwen3-VL substitutes for a video."""
    t, h, w = grid
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        video_token="<|video_pad|>",
        vision_end_token="<|vision_end|>",
        _calculate_timestamps=lambda *args: Qwen3VLProcessor._calculate_timestamps(None, *args),
    )
    video = {
        "video_grid_thw": torch.tensor([[t, 2 * h, 2 * w]]),
        "video_metadata": [SimpleNamespace(fps=fps, frames_indices=frame_indices)],
    }
    return Qwen3VLProcessor.replace_video_token(processor, video, 0)


def test_the_format_of_the_released_checkpoint():
    turn = Turn(0, 0.0, 1.0, (2, 1, 2))
    opened = text_of(turns_of("qwen2_5_vl"), turns_of("qwen2_5_vl").open_turn(turn, "Who?"))
    pads = "<|video_pad|>" * 4
    assert opened == (
        f"<|im_start|>user\nTime=0.0-1.0s<|vision_start|>{pads}<|vision_end|>Who?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def tokenizers(carried_golden):
    return {"tiny": TOKENIZER, "recorded": AutoTokenizer.from_pretrained(carried_golden / "model")}


@pytest.mark.parametrize("tokenizer", ["tiny", "recorded"])
@given(
    start_s=st.sampled_from([0, 1, 7, 59, 3600]),
    rate=st.sampled_from([(2.0, 1.0), (4.0, 1.0), (2.0, 2.0), (4.0, 0.5), (3.0, 1.0), (5.0, 1.0), (1.0, 1.0)]),
)
def test_qwen3_time_labels_are_those_of_its_processor(tokenizers, tokenizer, start_s, rate):
    fps, turn_s = rate
    turns = turns_of("qwen3_vl", tokenizers[tokenizer], fps=fps, turn_s=turn_s)
    num_frames = round(fps * turn_s)
    grid = (-(-num_frames // 2), 2, 3)
    opened = turns.open_turn(Turn(5, start_s, start_s + turn_s, grid))
    indices = [round(start_s * fps) + frame for frame in range(num_frames)]
    video = as_processed(grid, indices, fps)
    assert text_of(turns, opened) == f"<|im_start|>user\n{video}<|im_end|>\n<|im_start|>assistant\n"
    assert turns.encode(text_of(turns, opened)) == opened.ids, "tokenized as the whole text is"


def test_a_qwen3_turn_has_one_vision_span_per_patch():
    turns = turns_of("qwen3_vl", fps=4.0)
    opened = turns.open_turn(Turn(3, 3.0, 4.0, (2, 2, 3)), "Who?")
    spans = [SegmentKind.TIME, SegmentKind.VISION_START, SegmentKind.VISION, SegmentKind.VISION_END]
    after = [SegmentKind.QUERY, SegmentKind.USER_CLOSE, SegmentKind.REPLY_OPEN]
    assert [segment.kind for segment in opened.segments] == [SegmentKind.USER_OPEN, *spans, *spans, *after]
    assert [s.grid for s in opened.segments if s.kind is SegmentKind.VISION] == [(1, 2, 3), (1, 2, 3)]
    assert {(s.turn, s.start_s, s.end_s) for s in opened.segments} == {(3, 3.0, 4.0)}
    assert sum(s.num_tokens for s in opened.segments) == len(opened.ids)
    positions = contiguous_positions(opened.segments)
    is_vision = torch.tensor([s.kind is SegmentKind.VISION for s in opened.segments for _ in range(s.num_tokens)])
    starts = positions[0, is_vision].unique()
    assert len(starts) == 2, "each patch has one time"


def test_every_name_is_a_format_and_every_family_has_one():
    for name in TURN_FORMATS:
        assert TurnFormat(TOKENIZER, temporal_step=1.0, name=name).open_turn(Turn(0, 0.0, 1.0, (1, 1, 1)))
    assert {family.turn_format for family in FAMILIES.values()} == set(TURN_FORMATS)
    assert turns_of("qwen3_vl", turn_format="time-range-1").name == "time-range-1"
