"""A stream against its oracles: one full pass while nothing is evicted, a naive stream afterwards."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from naive_stream import NaiveStream
from steering import record_logits, restore_sampling, steered
from tiny_inputs import frames
from tiny_streams import GREEDY, SMALL

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.model.vision import preprocess
from streamingvlm.video.video_turn import VideoTurn

VIDEO = VideoConfig(fps=2.0, turn_s=1.0, min_pixels=1, max_pixels=84 * 84)
QUERY = "Who has the ball?"
PREVIOUS = "The match is about to begin and the crowd is on its feet"
TOLERANCE = 1e-4


def open_session(model, cache=None, video=VIDEO, sampling=GREEDY, **settings) -> StreamingSession:
    return StreamingSession(model, cache=cache, video=video, sampling=sampling, **settings)


@pytest.mark.parametrize("turn_s", [1.0, 2.0], ids=["one patch", "two patches"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_without_eviction_a_stream_equals_one_full_pass(models, tiny_checkpoint, model_type, turn_s):
    video = replace(VIDEO, turn_s=turn_s)
    session = open_session(models[model_type], {"policy": "full"}, video, query=QUERY, previous_text=PREVIOUS)
    streamed = record_logits(session)
    pictures = [frames(turn, video.num_frames) for turn in range(6)]
    for picture in pictures:
        session.step(picture)
    asked = [
        s.kind in (SegmentKind.SPEECH, SegmentKind.TAIL) for s in session.layout.segments for _ in range(s.num_tokens)
    ]
    choices = [place - 1 for place, is_said in enumerate(asked) if is_said]
    whole = full_pass(tiny_checkpoint(model_type), session, pictures)[choices]
    said = torch.stack(streamed)[: len(choices)]
    assert len(streamed) >= len(choices) >= 6
    assert (whole - said).abs().max() < TOLERANCE


def full_pass(folder, session: StreamingSession, pictures: list[torch.Tensor]) -> torch.Tensor:
    """Logits [T, V] of transformers' own whole model over all tokens of the session and the pictures in sight.

    Stock attention, the stock vision path, and the positions that the model's class finds by itself.
    """
    stock = load_model(folder, device="cpu")
    limits = {"min_pixels": session.video_config.min_pixels, "max_pixels": session.video_config.max_pixels}
    patches, grids = zip(*(preprocess(picture, family=stock.family, **limits) for picture in pictures), strict=True)
    ids = torch.tensor([session.inspect().ids])
    with torch.inference_mode():
        return stock.hf(
            input_ids=ids,
            mm_token_type_ids=2 * (ids == session.format.vision_pad_id),
            pixel_values_videos=torch.cat(patches),
            video_grid_thw=torch.tensor(grids),
            second_per_grid_ts=torch.ones(len(grids)),
        ).logits[0]


@pytest.mark.parametrize(
    ("model_type", "cache", "video"),
    [
        ("qwen2_5_vl", SMALL, {}),
        ("qwen2_5_vl", {**SMALL, "vision_window_s": 4.0, "turn_window_s": 2.0}, {}),
        ("qwen2_5_vl", {**SMALL, "vision_window_s": 1.0, "turn_window_s": 1.0}, {}),
        ("qwen2_5_vl", {**SMALL, "text_sink_tokens": 0}, {}),
        ("qwen2_5_vl", {**SMALL, "text_window_tokens": 0}, {}),
        ("qwen2_5_vl", {**SMALL, "positions": "native"}, {}),
        ("qwen2_5_vl", {**SMALL, "positions": "native", "turn_window_s": 1.0}, {}),
        ("qwen2_5_vl", SMALL, {"turn_s": 0.5, "fps": 4.0}),
        ("qwen2_5_vl", SMALL, {"turn_s": 1.5, "fps": 3.0}),
        ("qwen2_5_vl", SMALL, {"fps": 5.0}),
        ("qwen2_5_vl", {**SMALL, "text_step_tokens": 5}, {}),
        ("qwen2_5_vl", {**SMALL, "recompute_text": True}, {}),
        ("qwen2_5_vl", {**SMALL, "recompute_text": True, "text_step_tokens": 5}, {}),
        ("qwen2_5_vl", {**SMALL, "recompute_text": True, "turn_window_s": 1.0}, {"turn_s": 1.5, "fps": 3.0}),
        ("qwen2_5_vl", {**SMALL, "recompute_text": True, "positions": "native"}, {}),
        ("qwen3_vl", {**SMALL, "recompute_text": True}, {}),
        ("qwen2_vl", SMALL, {}),
        ("qwen2_vl", SMALL, {"fps": 5.0}),
        ("qwen3_vl", SMALL, {}),
        ("qwen3_vl", {**SMALL, "vision_window_s": 4.0, "turn_window_s": 2.0}, {}),
        ("qwen3_vl", {**SMALL, "positions": "native", "turn_window_s": 1.0}, {"fps": 4.0}),
        ("qwen3_vl", SMALL, {"fps": 5.0}),
        ("qwen3_vl", SMALL, {"fps": 4.0, "turn_format": "time-range-1"}),
    ],
)
def test_after_eviction_a_stream_equals_the_naive_stream(models, model_type, cache, video):
    model = models[model_type]
    video = VideoConfig(**{"fps": 2.0, "turn_s": 1.0, "min_pixels": 1, "max_pixels": 56 * 56, **video})
    settings = {"query": QUERY, "previous_text": PREVIOUS}
    session = open_session(model, CacheConfig(**cache), video, **settings)
    naive = NaiveStream(model, CacheConfig(**cache), video, max_new_tokens=GREEDY.max_new_tokens, **settings)
    streamed = record_logits(session)
    for second in range(7):
        picture = frames(second, video.num_frames, 56, 56)
        streamed.clear()
        session.step(picture)
        with torch.inference_mode():
            reply, logits = naive.step(picture)
        assert session.inspect().ids == [token.id for token in naive.tokens], f"second {second}"
        assert len(streamed) == len(reply)
        assert (torch.stack(streamed) - torch.stack(logits)).abs().max() < TOLERANCE, f"second {second}"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_recompute_equals_a_fresh_pass_over_what_is_kept(models, model_type, tiny_checkpoint):
    cache = CacheConfig(**SMALL, recompute=True)
    session = open_session(models[model_type], cache, query=QUERY, previous_text=PREVIOUS)
    streamed = record_logits(session)
    for second in range(7):
        streamed.clear()
        session.step(frames(second))
        pictures = [frames(s.turn) for s in session.layout.segments if s.kind is SegmentKind.VISION]
        opened = [s.kind is SegmentKind.REPLY_OPEN for s in session.layout.segments for _ in range(s.num_tokens)]
        last_open = max(place for place, is_open in enumerate(opened) if is_open)
        fresh = full_pass(tiny_checkpoint(model_type), session, pictures)[last_open]
        assert (fresh - streamed[0]).abs().max() < TOLERANCE


def test_window_starts_as_a_new_stream_would(model):
    session = open_session(model, CacheConfig(policy="window", vision_window_s=3), query=QUERY, previous_text=PREVIOUS)
    for second in range(3):
        session.step(frames(second))
    streamed = record_logits(session)
    session.step(frames(3))
    fresh = open_session(model, CacheConfig(policy="full"), query=QUERY, previous_text=PREVIOUS)
    expected = record_logits(fresh)
    fresh.step(VideoTurn(0, 3.0, 4.0, frames(3)))
    assert session.inspect().ids == fresh.inspect().ids
    assert (torch.stack(streamed) - torch.stack(expected)).abs().max() < TOLERANCE


def test_the_cache_looks_like_the_chunk_that_training_shows(model):
    """System, previous text, the query alone, then whole turns in order."""
    session = open_session(model, CacheConfig(**SMALL), query=QUERY, previous_text=PREVIOUS)
    for second in range(8):
        session.step(frames(second))
    turns = [s.turn for s in session.layout.segments if s.kind is SegmentKind.REPLY_OPEN]
    text = model.tokenizer.decode(session.inspect().ids)
    assert turns == [5, 6, 7]
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>previous text\n")
    assert f"<|im_end|>\n<|im_start|>user\n{QUERY}<|im_end|>\n<|im_start|>user\nTime=5.0-6.0s<|im_end|>\n" in text
    assert "Time=6.0-7.0s<|vision_start|>" in text
    assert text.count("Time=") == 3


def test_a_long_stream_stays_within_what_was_allocated(model):
    session = open_session(model, CacheConfig(**SMALL), query=QUERY, previous_text=PREVIOUS * 10)
    memory = session.engine.runner.pool.keys.data_ptr()
    for second in range(40):
        session.step(frames(second))
        assert session.stats.cache_tokens <= session.stats.capacity_tokens
    assert session.engine.runner.pool.keys.data_ptr() == memory
    assert session.layout.count(SegmentKind.PREVIOUS) == SMALL["text_sink_tokens"] + SMALL["text_window_tokens"]


def test_reset_begins_the_same_stream_again(model):
    session = open_session(model, SMALL, sampling=SamplingConfig(max_new_tokens=4, seed=3))
    first = [session.step(frames(second)).text for second in range(5)]
    session.reset()
    assert [session.step(frames(second)).text for second in range(5)] == first
    other = open_session(model, SMALL, sampling=SamplingConfig(max_new_tokens=4, seed=4))
    assert [other.step(frames(second)).text for second in range(5)] != first


def test_tokens_are_told_as_they_are_decoded(model):
    pieces = []
    session = open_session(model, SMALL, on_token=pieces.append)
    for second in range(6):
        pieces.clear()
        line = session.step(frames(second))
        assert "".join(pieces).rstrip("\ufffd ") == line.text.rstrip("\ufffd ")


def test_the_penalty_sees_all_that_is_kept(model):
    session = open_session(
        model, SMALL, sampling=SamplingConfig(temperature=0, repetition_penalty=2.0, max_new_tokens=3)
    )
    for second in range(3):
        session.step(frames(second))
        assert penalised_ids(session) == set(session.inspect().ids)


def penalised_ids(session: StreamingSession) -> set[int]:
    return set(session.engine.runner.penalty_mask.mask[session.slot].nonzero()[:, 0].tolist())


def test_seconds_bring_their_own_times(model):
    lines = list(open_session(model, SMALL).stream(VideoTurn(i, 10.0 + i, 11.0 + i, frames(i)) for i in range(3)))
    assert [(line.start_s, line.end_s) for line in lines] == [(10, 11), (11, 12), (12, 13)]
    assert all(before.end_s == after.start_s for before, after in pairwise(lines))


def test_frames_of_changing_size_are_taken_in_their_own_grid(model):
    session = open_session(model, SMALL)
    for second, (height, width) in enumerate([(56, 84), (84, 56), (28, 28)]):
        session.step(frames(second, 2, height, width))
    grids = [s.grid for s in session.layout.segments if s.kind is SegmentKind.VISION]
    assert grids == [(1, 3, 2), (1, 1, 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 56, 56),
        torch.zeros(2, 4, 56, 56, dtype=torch.uint8),
        [[1, 2]],
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_wrong_frames_are_refused_in_one_line_and_the_stream_goes_on(model, wrong):
    session = open_session(model, SMALL)
    session.step(frames(0))
    with pytest.raises(VideoError, match="uint8") as error:
        session.step(wrong)
    assert "\n" not in str(error.value)
    assert session.step(frames(1)).start_s == 1.0


class Interrupted:
    """Raises KeyboardInterrupt instead of the ``number``-th call of a function, once."""

    def __init__(self, function, number: int):
        self.function, self.left = function, number

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


INTERRUPTED = {
    "in the vision tower": (lambda session: (session.model.hf.model.visual, "forward"), 1),
    "in the prefill": (lambda session: (session.model.text_model.layers[1].mlp, "forward"), 1),
    "in the first word": (lambda session: (session.model.text_model.layers[1].mlp, "forward"), 2),
    "in a later word": (lambda session: (session.model.text_model.layers[0].mlp, "forward"), 4),
    "between words": (lambda session: (session.engine.runner, "sample"), 3),
}


@pytest.mark.parametrize(
    "cache",
    [{"policy": "full"}, {**SMALL, "recompute": True}, SMALL, {**SMALL, "turn_window_s": 1.0, "vision_window_s": 1.0}],
    ids=["full", "recompute", "3 s", "1 s"],
)
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("where", "number"), INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_after_an_interruption_the_stream_goes_on(models, model_type, where, number, cache, monkeypatch):
    """As if the model had ended its reply there; a turn that was not opened yet is as if it had never come."""
    session, other = (open_session(models[model_type], cache, query=QUERY, previous_text=PREVIOUS) for _ in range(2))
    for second in range(3):
        step_alike(session, other, frames(second))
    home, name = where(session)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, Interrupted(getattr(home, name), number))
        with pytest.raises(KeyboardInterrupt):
            session.step(frames(3))
    if session.num_turns == 4:
        repeat(session, other, frames(3))
    for second in range(4, 7):
        streamed, expected = step_alike(session, other, frames(second))
        # Under a window, what was not fed before the interruption is fed later, when less is in sight.
        if cache.get("policy") == "full" or cache.get("recompute"):
            assert (streamed - expected).abs().max() < TOLERANCE


def step_alike(session: StreamingSession, other: StreamingSession, picture) -> tuple[torch.Tensor, torch.Tensor]:
    """Step the one, and the other into the same words; return the logits of both."""
    logits = record_logits(session)
    session.step(picture)
    restore_sampling(session)
    return torch.stack(logits), repeat(session, other, picture)


def repeat(session: StreamingSession, other: StreamingSession, picture) -> torch.Tensor:
    """Put the words of the one's last turn into the other's mouth; both must then hold the same. Return its logits."""
    words = (SegmentKind.SPEECH, SegmentKind.TAIL, SegmentKind.REPLY_END)
    said = sum(s.num_tokens for s in session.layout.segments if s.turn == session.num_turns - 1 and s.kind in words)
    with steered(other, session.inspect().ids[-said:]) as logits:
        other.step(picture)
    assert session.inspect().ids == other.inspect().ids
    assert session.layout == other.layout
    assert torch.equal(session.inspect().positions, other.inspect().positions)
    return torch.stack(logits)


def test_a_stream_of_several_patches_a_turn_stays_within_what_was_allocated(models):
    video = replace(VIDEO, fps=8.0)
    session = open_session(models["qwen3_vl"], SMALL, video, query=QUERY, previous_text=PREVIOUS * 10)
    memory = session.engine.runner.pool.keys.data_ptr()
    for second in range(12):
        session.step(frames(second, video.num_frames, 84, 84))
        assert session.stats.cache_tokens <= session.stats.capacity_tokens
    assert session.engine.runner.pool.keys.data_ptr() == memory
    spans = [segment.turn for segment in session.layout.segments if segment.kind is SegmentKind.VISION]
    assert spans == [10] * 4 + [11] * 4
    assert str(session.layout).splitlines()[-1].split()[2] == "11.0-12.0", "a turn of many spans is one row"


@pytest.mark.parametrize(
    ("group", "settings", "word"),
    [
        ("cache", {"vision_window_s": 0.5}, "vision_window_s"),
        ("cache", {"turn_window_s": 0}, "turn_window_s"),
        ("cache", {"text_sink_tokens": -1}, "text_sink_tokens"),
        ("cache", {"policy": "lru"}, "policy"),
        ("cache", {"text_sink": 1}, "text_sink"),
        ("cache", {"recompute": True, "positions": "native"}, "recompute"),
        ("video", {"fps": -1}, "fps"),
        ("video", {"fps": "two"}, "fps"),
        ("video", {"fps": 0.1}, "no frame"),
        ("video", {"turn_format": "morse"}, "time-range-1, patch-seconds-1"),
        ("sampling", {"temperature": -0.1}, "temperature"),
        ("sampling", {"top_p": 0}, "top_p"),
    ],
)
def test_wrong_settings_are_named(model, group, settings, word):
    with pytest.raises(ConfigError, match=word) as error:
        StreamingSession(model, **{group: settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("start_s", "printed"), [(12, "[00:12] goal"), (75, "[01:15] goal"), (3661, "[1:01:01] goal")])
def test_a_line_prints_with_its_time(start_s, printed):
    assert str(Commentary(start_s, start_s + 1, "goal")) == printed
