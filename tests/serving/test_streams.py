"""One thread runs the model for all streams: fairly, without one at another's cost."""

import threading
from concurrent.futures import CancelledError

import pytest
from running_server import MATCH

from streamingvlm import StreamingSession
from streamingvlm.errors import ConfigError
from streamingvlm.serving.cache_picture import cache_picture
from streamingvlm.serving.streams import ClosedError, Streams
from streamingvlm.video.reader import open_video


@pytest.fixture(scope="module")
def seconds():
    with open_video(MATCH) as video:
        return [second for _, second in zip(range(20), video, strict=False)]


@pytest.fixture
def streams(pitch):
    opened = Streams(pitch, {})
    yield opened
    opened.close()


def hold(streams, stream, go_on):
    """Keep the model's thread busy until it may go on."""
    begun = threading.Event()
    future = streams.run(stream, lambda: begun.set() or go_on.wait(60))
    assert begun.wait(60)
    return future


def test_streams_take_turns_whoever_came_first(streams):
    order, go_on = [], threading.Event()
    first, second, third = (streams.open() for _ in range(3))
    hold(streams, first, go_on)
    futures = [streams.run(first, lambda: order.append("first")) for _ in range(3)]
    futures += [streams.run(second, lambda: order.append("second")) for _ in range(2)]
    futures += [streams.run(third, lambda: order.append("third"))]
    go_on.set()
    for future in futures:
        future.result(60)
    assert order == ["first", "second", "third", "first", "second", "first"]


def test_interleaved_streams_say_what_they_would_say_alone(pitch, streams, seconds):
    opened = [streams.open() for _ in range(2)]
    futures = [(stream.submit(second), stream.submit(second)) for second in seconds[:5] for stream in opened[:1]]
    assert all(line.result(60) for pair in futures for line in pair)
    alone = StreamingSession(pitch)
    expected = [alone.step(second).text for second in seconds[:6]]
    assert [opened[1].submit(second).result(60).text for second in seconds[:6]] == expected


def test_a_question_and_its_limit_reach_the_turn(pitch, streams, seconds):
    stream = streams.open(query="Who leads?")
    stream.listen(seconds[0]).result(60)
    line = stream.submit(seconds[1], question="pass", max_new_tokens=3).result(60)
    alone = StreamingSession(pitch, query="Who leads?")
    alone.hear(seconds[0], "")
    assert line.text == alone.step(seconds[1], question="pass", max_new_tokens=3).text


def test_an_error_belongs_to_its_own_future(streams, seconds):
    stream = streams.open()
    failing = stream.submit(seconds[0], max_new_tokens=0)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        failing.result(60)
    assert stream.submit(seconds[0]).result(60).end_s == 1


def test_a_closed_stream_takes_nothing_and_what_waited_is_cancelled(streams, seconds):
    stream, other, go_on = streams.open(), streams.open(), threading.Event()
    running = hold(streams, stream, go_on)
    waiting = stream.submit(seconds[0])
    stream.close()
    go_on.set()
    assert running.result(60)
    with pytest.raises(CancelledError):
        waiting.result(60)
    with pytest.raises(ClosedError):
        stream.submit(seconds[0]).result(60)
    assert other.submit(seconds[0]).result(60)


def test_after_the_end_nothing_runs(pitch, seconds):
    streams = Streams(pitch, {})
    stream = streams.open()
    streams.close()
    assert not streams.is_running
    with pytest.raises(ClosedError):
        stream.submit(seconds[0]).result(60)


def test_the_picture_of_a_cache_is_drawn_to_scale(streams, seconds):
    stream = streams.open(query="Who leads?", previous_text="Wanderers home blue, Harriers away red. " * 20)
    for second in seconds:
        stream.submit(second).result(60)
    session, state = stream.session, stream.state
    assert state.runs == tuple(cache_picture(session.layout, session.cache_config))
    assert sum(run.num_tokens for run in state.runs) == session.layout.num_tokens
    by_sort = {what: [run for run in state.runs if run.what == what] for what in {run.what for run in state.runs}}
    assert [run.num_tokens for run in by_sort["sink"]] == [session.cache_config.text_sink_tokens]
    assert [run.num_tokens for run in by_sort["window"]] == [session.cache_config.text_window_tokens]
    assert len(by_sort["query"]) == 1
    assert len({run.turn for run in by_sort["vision"]}) == session.cache_config.vision_window_s
    assert state.capacity_tokens >= state.cache_tokens > 0
