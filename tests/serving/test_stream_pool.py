"""The streams of one engine: each gives the lines that it gives alone, whatever happens to the others."""

import threading
from concurrent.futures import wait

import pytest
import torch
from running_server import MATCH, PATIENCE_S, Hold

from streamingvlm import StreamingSession
from streamingvlm.errors import ClosedError, ConfigError, EngineFull, VideoError
from streamingvlm.serving.stream_pool import StreamPool
from streamingvlm.video.reader import open_video
from streamingvlm.video.video_turn import VideoTurn


@pytest.fixture(scope="module")
def turns():
    with open_video(MATCH) as video:
        return [turn for _, turn in zip(range(20), video, strict=False)]


@pytest.fixture
def streams(pitch):
    opened = StreamPool(pitch, {})
    yield opened
    opened.close()


def texts(futures):
    return [future.result(PATIENCE_S).text for future in futures]


def test_concurrent_streams_give_the_lines_of_each_alone(pitch, streams, turns):
    queries = ["", "Who leads?", "Say the score"]
    opened = [streams.open(query=query) for query in queries]
    futures = [[stream.submit(turn) for stream in opened] for turn in turns[:6]]
    for number, query in enumerate(queries):
        alone = StreamingSession(pitch, query=query)
        assert texts(row[number] for row in futures) == [alone.step(turn).text for turn in turns[:6]]


def test_the_cache_dtype_applies_to_all_streams(pitch, turns):
    cache = {"dtype": "fp8"}
    opened = StreamPool(pitch, {"cache": cache})
    try:
        stream = opened.open(cache={"vision_window_s": 4.0})
        alone = StreamingSession(pitch, cache={**cache, "vision_window_s": 4.0})
        assert stream.session.inspect().keys.dtype == torch.uint8
        assert texts(map(stream.submit, turns[:3])) == [alone.step(turn).text for turn in turns[:3]]
    finally:
        opened.close()


def test_a_question_and_its_limit_reach_the_turn(pitch, streams, turns):
    stream = streams.open(query="Who leads?")
    stream.submit(turns[0], reply="")
    line = stream.submit(turns[1], question="pass", max_new_tokens=3).result(PATIENCE_S)
    alone = StreamingSession(pitch, query="Who leads?")
    alone.step(turns[0], reply="")
    assert line.text == alone.step(turns[1], question="pass", max_new_tokens=3).text


def test_questions_and_a_new_query(pitch, streams, turns):
    stream, alone = streams.open(), StreamingSession(pitch)
    lines = [stream.submit(turn) for turn in turns[:3]]
    answer = stream.ask("Who leads?", max_new_tokens=8)
    assert texts(lines) == [alone.step(turn).text for turn in turns[:3]]
    assert answer.result(PATIENCE_S) == alone.ask("Who leads?", max_new_tokens=8)
    stream.set_query("Say who has the ball")
    alone.query = "Say who has the ball"
    lines = [stream.submit(turn) for turn in turns[3:6]]
    assert texts(lines) == [alone.step(turn).text for turn in turns[3:6]]
    assert any(span.kind == "query" for span in stream.status.spans)


def test_a_failing_stream_does_not_affect_others(pitch, streams, turns):
    def fail(_piece):
        raise RuntimeError("the listener is broken")

    good, blind, broken = streams.open(), streams.open(), streams.open(on_token=fail)
    futures = [(good.submit(turn), blind.submit(no_frames(turn)), broken.submit(turn)) for turn in turns[:3]]
    alone = StreamingSession(pitch)
    assert texts(row[0] for row in futures) == [alone.step(turn).text for turn in turns[:3]]
    assert all(isinstance(row[1].exception(PATIENCE_S), VideoError) for row in futures)
    assert {type(row[2].exception(PATIENCE_S)) for row in futures} <= {RuntimeError, type(None)}
    assert any(row[2].exception() for row in futures)
    assert blind.submit(turns[0]).result(PATIENCE_S).end_s == 1
    with pytest.raises(ConfigError, match="max_new_tokens"):
        good.submit(turns[3], max_new_tokens=0)


def no_frames(turn):
    return VideoTurn(
        turn.index, turn.start_s, turn.end_s, torch.zeros(2, 3, 2, 800, dtype=torch.uint8)
    )  # too long and narrow


def test_closing_a_stream_ends_its_pending_futures_only(streams, turns):
    hold = Hold()
    talking, waiting = streams.open(on_token=hold), streams.open()
    talks = [talking.submit(turn) for turn in turns[:3]]
    assert hold.begun.wait(PATIENCE_S)
    kept = waiting.submit(turns[0])
    asked = talking.ask("Who leads?")
    closing = threading.Thread(target=talking.close)
    closing.start()
    hold.go_on.set()
    closing.join(PATIENCE_S)
    assert kept.result(PATIENCE_S).end_s == 1
    assert wait([*talks, asked], PATIENCE_S).not_done == set()
    for future in (*talks[1:], asked):
        with pytest.raises(ClosedError, match="the session has ended"):
            future.result()
    with pytest.raises(ClosedError):
        talking.submit(turns[3])
    talking.close()
    assert waiting.submit(turns[1]).result(PATIENCE_S).end_s == 2


def test_cancelled_requests_do_not_run(pitch, streams, turns):
    hold = Hold()
    talking, other = streams.open(on_token=hold), streams.open()
    talks = talking.submit(turns[0])
    assert hold.begun.wait(PATIENCE_S)
    given_up = [other.submit(turns[0]), other.ask("Who leads?")]
    assert all(future.cancel() for future in given_up)
    line = other.submit(turns[1])
    hold.go_on.set()
    assert line.result(PATIENCE_S).text == StreamingSession(pitch).step(turns[1]).text
    assert talks.result(PATIENCE_S)
    assert other.status.num_turns == 1


def test_the_number_of_streams_is_limited_and_closing_frees_a_slot(pitch, turns):
    streams = StreamPool(pitch, {}, num_streams=2)
    first, second = streams.open(), streams.open()
    with pytest.raises(EngineFull):
        streams.open()
    first.close()
    lines = [stream.submit(turns[0]) for stream in (second, streams.open())]
    assert len(set(texts(lines))) == 1
    streams.close()


def test_memory_too_small_for_one_stream_raises_at_the_start(pitch):
    with pytest.raises(EngineFull, match="give the engine more memory"):
        StreamPool(pitch, {}, memory_bytes=100_000)


def test_after_close_nothing_runs(pitch, turns):
    streams = StreamPool(pitch, {})
    hold = Hold()
    stream = streams.open(on_token=hold)
    assert streams.is_running
    talks = [stream.submit(turn) for turn in turns[:2]]
    assert hold.begun.wait(PATIENCE_S)
    closing = threading.Thread(target=streams.close)
    closing.start()
    hold.go_on.set()
    closing.join(PATIENCE_S)
    assert not streams.is_running
    with pytest.raises(ClosedError):
        talks[1].result(PATIENCE_S)
    with pytest.raises(ClosedError):
        stream.submit(turns[2])


def test_the_cache_spans_match_the_layout(streams, turns):
    stream = streams.open(query="Who leads?", previous_text="Wanderers home blue, Harriers away red. " * 20)
    for turn in turns:
        stream.submit(turn).result(PATIENCE_S)
    session, status = stream.session, stream.status
    assert status.spans == tuple(session.layout.cache_spans())
    assert sum(span.num_tokens for span in status.spans) == session.layout.num_tokens
    by_kind = {
        kind: [span for span in status.spans if span.kind == kind] for kind in {span.kind for span in status.spans}
    }
    assert [span.num_tokens for span in by_kind["sink"]] == [session.cache_config.text_sink_tokens]
    (window,) = by_kind["window"]
    most = session.cache_config.text_window_tokens
    assert most - session.cache_config.text_step_tokens < window.num_tokens <= most
    assert len(by_kind["query"]) == 1
    assert len({span.turn for span in by_kind["vision"]}) == session.cache_config.vision_window_s
    assert status.capacity_tokens >= status.cache_tokens > 0
