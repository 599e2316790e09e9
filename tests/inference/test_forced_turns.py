"""Turns with a question, and turns with a forced reply: the cache must be that of a session that generated it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_stream import NaiveStream
from steering import steered
from tiny_inputs import frames
from tiny_streams import GREEDY, SMALL, TEXTS, VIDEO

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.config import CacheConfig, SamplingConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.family import FAMILIES

QUESTION = "How many goals were there?"
TOLERANCE = 1e-4

CACHES = {
    "streaming": SMALL,
    "reread": {**SMALL, "recompute_text": True},
    "native": {**SMALL, "positions": "native"},
    "vision outlives turns": {**SMALL, "vision_window_s": 4.0, "turn_window_s": 2.0},
    "full": {"policy": "full"},
    "recompute": {**SMALL, "recompute": True},
    "window": {"policy": "window", "vision_window_s": 3.0},
    "reference": {**SMALL, "policy": "reference"},
}
LINES = st.lists(
    st.lists(st.sampled_from(["goal", "the ball", "1-0", "é", "..."]), max_size=3).map(" ".join), max_size=6
)


def open_session(model, cache, **settings) -> StreamingSession:
    sampling = SamplingConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=64)
    return StreamingSession(model, cache=cache, video=VIDEO, **{"sampling": sampling, **TEXTS, **settings})


def say(session: StreamingSession, picture, words: str, **settings):
    """Make a session speak: its sampler chooses these words, token by token, whatever the logits."""
    reply = "".join(f" {word}" for word in words.split()) + " ...<|im_end|>"
    ids = session.format.encode(reply)
    with steered(session, ids) as logits:
        line = session.step(picture, **settings)
    assert len(logits) == len(ids), "all of the reply was spoken"
    return line


def assert_alike(heard: StreamingSession, spoken: StreamingSession):
    one, other = heard.inspect(), spoken.inspect()
    assert one.ids == other.ids
    assert one.layout == other.layout
    assert torch.equal(one.positions, other.positions)
    assert one.num_cached == other.num_cached
    for name in ("keys", "values"):
        assert (getattr(one, name) - getattr(other, name)).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_forced_reply_leaves_the_cache_of_a_generated_one(models, model_type, cache):
    heard, spoken = (open_session(models[model_type], cache) for _ in range(2))
    for second, words in enumerate(["the ball is in", "", "goal", "", "1-0", "it is the end", ""]):
        picture = frames(second, height=56, width=56)
        line, said = heard.step(picture, reply=words), say(spoken, picture, words)
        assert (line.start_s, line.end_s, line.text) == (said.start_s, said.end_s, said.text)
        assert line.num_tokens == 0
        assert_alike(heard, spoken)
    picture = frames(99, height=56, width=56)
    assert heard.step(picture).text == spoken.step(picture).text


@settings(max_examples=15)
@given(lines=LINES, asked=st.integers(0, 5))
def test_any_forced_words_equal_generated_ones(model, lines, asked):
    heard, spoken = (open_session(model, SMALL) for _ in range(2))
    for second, words in enumerate(lines):
        question = QUESTION if second == asked else ""
        picture = frames(second, height=28, width=56)
        heard.step(picture, reply=words, question=question)
        say(spoken, picture, words, question=question)
        assert_alike(heard, spoken)


def test_a_forced_reply_draws_no_random_number(model):
    lines = []
    for num_heard in (0, 3):
        session = open_session(model, {"policy": "full"}, sampling=SamplingConfig(seed=1, max_new_tokens=4))
        state = session.inspect().random_state
        for second in range(num_heard):
            session.step(frames(second), reply="goal")
        assert torch.equal(session.inspect().random_state, state)
        lines.append(session.step(frames(9)).num_tokens)
    assert lines[0] > 0


def test_an_interrupted_forced_turn_is_completed_later(model, monkeypatch):
    session, other = (open_session(model, SMALL) for _ in range(2))
    for second in range(3):
        session.step(frames(second), reply="goal")
        other.step(frames(second), reply="goal")
    with monkeypatch.context() as patch:
        patch.setattr(session.model.text_model.layers[-1].mlp, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.step(frames(3), reply="the end")
    other.step(frames(3), reply="the end")
    for second in range(4, 7):
        session.step(frames(second), reply="")
        other.step(frames(second), reply="")
        assert session.inspect().ids == other.inspect().ids
        assert session.layout == other.layout


def interrupt(_states):
    raise KeyboardInterrupt


def text_of(session: StreamingSession) -> str:
    return session.model.tokenizer.decode(session.inspect().ids)


@pytest.mark.parametrize("asked", [0, 2], ids=["beside the query", "in mid-stream"])
@pytest.mark.parametrize("cache", [SMALL, {**SMALL, "vision_window_s": 4.0, "turn_window_s": 2.0}])
def test_a_question_goes_with_its_turn_and_the_query_stays(model, cache, asked):
    session = open_session(model, cache)
    window_s = int(max(cache["vision_window_s"], cache["turn_window_s"]))
    for second in range(8):
        reply, question = ("yes", QUESTION) if second == asked else ("", "")
        session.step(frames(second), reply=reply, question=question)
        is_in_sight = asked <= second < asked + window_s
        assert (QUESTION in text_of(session)) == is_in_sight, second
        assert text_of(session).count(TEXTS["query"]) == 1
    held = [s.kind for s in session.layout.segments if s.turn == 0 and s.kind is not SegmentKind.PREVIOUS]
    assert held == [SegmentKind.USER_OPEN, SegmentKind.QUERY, SegmentKind.USER_CLOSE], (
        "the standing query's own shape is unchanged"
    )
    assert session.layout.count(SegmentKind.PREVIOUS) > 0
    assert " yes<|im_end|>" in text_of(session), "the answer is the end of the previous text"


def test_a_question_stands_after_the_video_of_its_second(model):
    session = open_session(model, SMALL)
    session.step(frames(0), reply="", question=QUESTION)
    assert f"<|vision_end|>{TEXTS['query']}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n" in text_of(session)
    session.step(frames(1), reply="", question=QUESTION)
    assert f"<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n" in text_of(session)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_stream_with_questions_equals_the_naive_stream(models, model_type):
    model, cache = models[model_type], CacheConfig(**SMALL)
    session = open_session(model, cache, sampling=GREEDY)
    naive = NaiveStream(model, cache, VIDEO, max_new_tokens=GREEDY.max_new_tokens, **TEXTS)
    for second in range(7):
        question = QUESTION if second in (0, 2, 3) else ""
        picture = frames(second, height=56, width=56)
        line = session.step(picture, question=question)
        with torch.inference_mode():
            reply, _ = naive.step(picture, question)
        assert line.num_tokens == len(reply)
        assert session.inspect().ids == [token.id for token in naive.tokens], f"second {second}"


def test_a_question_and_a_long_answer_find_room_in_a_full_cache(model):
    session = open_session(model, SMALL, sampling=GREEDY)
    for second in range(6):
        session.step(frames(second))
    bound = session.inspect().allocated_tokens
    line = session.step(frames(6), question=QUESTION * 20, max_new_tokens=40)
    grown = session.inspect().allocated_tokens
    assert 5 < line.num_tokens <= 40
    assert bound < grown < bound * 3 // 2 + len(session.format.encode_plain(QUESTION * 20))
    for second in range(7, 14):
        assert session.step(frames(second)).num_tokens <= 5
    assert session.inspect().allocated_tokens == grown
    assert session.stats.cache_tokens <= session.stats.capacity_tokens, "what a question took is given back"


@pytest.mark.parametrize("wrong", [0, -1, "ten"])
def test_a_wrong_length_of_answer_is_refused_before_the_turn(model, wrong):
    session = open_session(model, SMALL)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        session.step(frames(0), max_new_tokens=wrong)
    assert session.num_turns == 0


def test_wrong_frames_are_refused(model):
    session = open_session(model, SMALL)
    with pytest.raises(VideoError, match="uint8"):
        session.step(torch.zeros(2, 3, 56, 56), reply="goal")
    assert session.step(frames(0), reply="goal").start_s == 0.0


@pytest.mark.parametrize("cache", ["reread", "recompute"])
def test_tokens_that_are_computed_again_are_not_counted_as_appended(model, cache):
    counts = []
    for name in ("streaming", cache):
        session = open_session(model, CACHES[name])
        for second in range(8):
            session.step(frames(second), reply="the ball")
        counts.append(session.num_appended_tokens)
    assert counts[0] == counts[1] > 0
