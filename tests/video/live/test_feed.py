"""Reconnecting, with fake connections that break."""

import logging
import threading
import time

import pytest
import torch

from streamingvlm.config import LiveConfig
from streamingvlm.errors import VideoError
from streamingvlm.video.live.feed import GAP, Backoff, ConnectionFeed
from streamingvlm.video.live.live_clock import LiveClock
from streamingvlm.video.source import BrokenStreamError, DecodedFrame, SkipCounts, VideoInfo

FAST_RETRIES = LiveConfig(retry_min_s=0.001, retry_max_s=0.002)


class FakeConnection:
    """Frames at these timestamps, then a break or the end."""

    is_paced = delays_one_frame = False
    has_clock = True
    tick_s = 1 / 90000

    def __init__(self, stamps_s, *, is_recording=False, has_ended=False, is_paced=False):
        self.first_stamp_s, self._times_s = stamps_s[0], [stamp_s - stamps_s[0] for stamp_s in stamps_s]
        self.is_recording, self.has_ended, self.is_paced = is_recording, has_ended, is_paced
        self.broken_by = None if has_ended else "it was pulled"
        self.info = VideoInfo(None, 2, 2, None, "fake", 0)
        self.skipped = SkipCounts(num_packets=1)
        self.seek_s = self.is_closed = None

    def frames(self):
        for time_s in self._times_s:
            if self.seek_s is None or time_s >= self.seek_s - 1:
                yield DecodedFrame(time_s, 0.5, lambda: torch.zeros(3, 2, 2, dtype=torch.uint8))

    def seek(self, start_s):
        self.seek_s = start_s

    def close(self):
        self.is_closed = True


def feed_of(first, *others, config=FAST_RETRIES, early="keep", feed_class=ConnectionFeed):
    """A feed whose reconnects give these in turn: connections, or errors to raise."""
    attempts = iter(others)

    def connect():
        attempt = next(attempts)
        if isinstance(attempt, Exception):
            raise attempt
        return attempt

    return feed_class(first, connect, LiveClock(early), config, shown="fake://camera", stop=threading.Event())


def times_and_gaps(feed):
    """The stream times of the frames, and the gaps between them."""
    return [event if event == GAP else event.time_s for event in feed.events() if not is_time(event)]


def is_time(event):
    return isinstance(event, float) and event != GAP


def test_the_delay_doubles_up_to_a_bound_with_jitter():
    backoff = Backoff(0.25, 2.0, random_=lambda: 1.0)
    assert [backoff.next_s() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    backoff.reset()
    assert backoff.next_s() == 0.25
    assert Backoff(0.25, 2.0, random_=lambda: 0.0).next_s() == 0.125
    for_weeks = Backoff(0.25, 2.0)
    waits_s = [for_weeks.next_s() for _ in range(5000)]
    assert max(waits_s) <= 2.0
    assert len(set(waits_s)) > 1000


def test_attempts_continue_until_the_camera_is_back():
    camera = FakeConnection([0.0, 0.5])
    back = FakeConnection([70.0, 70.5], is_recording=False, has_ended=True)
    feed = feed_of(camera, BrokenStreamError("off"), BrokenStreamError("off"), back)
    assert times_and_gaps(feed).count(GAP) == 1
    assert feed.skipped.num_reconnects == 1
    assert feed.skipped.num_packets == 2  # of both connections
    assert camera.is_closed and back.is_closed


def test_a_recording_resumes_where_it_broke():
    stamps_s = [10 + i / 2 for i in range(8)]
    first = FakeConnection(stamps_s[:3], is_recording=True)
    again = FakeConnection(stamps_s, is_recording=True, has_ended=True)
    feed = feed_of(first, again)
    assert times_and_gaps(feed) == [0.0, 0.5, 1.0, GAP, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert again.seek_s == 1.0


def test_hls_that_repeats_some_seconds_yields_only_new_frames():
    first = FakeConnection([10.0, 11.0, 12.0], is_paced=True)
    again = FakeConnection([11.0, 12.0, 13.0], is_paced=True, has_ended=True)
    assert len(times_and_gaps(feed_of(first, again))) == 3 + 1 + 1


def test_hls_whose_server_restarted_yields_all_its_frames():
    first = FakeConnection([500.0, 501.0], is_paced=True)
    again = FakeConnection([0.0, 1.0], is_paced=True, has_ended=True)
    assert len(times_and_gaps(feed_of(first, again))) == 2 + 1 + 2


def test_a_live_stream_that_is_now_a_recording_has_ended():
    ended = FakeConnection([0.0, 0.5, 1.0], is_recording=True)
    assert times_and_gaps(feed_of(FakeConnection([0.0, 0.5]), ended)) == [0.0, 0.5, GAP]
    assert ended.is_closed


def test_retries_end_with_an_error_after_their_limit():
    config = LiveConfig(retry_min_s=0.001, retry_max_s=0.002, retry_for_s=0.01)
    feed = feed_of(FakeConnection([0.0]), *[BrokenStreamError("no answer") for _ in range(10_000)], config=config)
    with pytest.raises(VideoError, match=r"no answer; retried for live\.retry_for_s = 0\.01 s"):
        list(feed.events())


def test_of_the_first_burst_of_a_camera_only_the_newest_frame_is_kept():
    feed = feed_of(FakeConnection([float(i) for i in range(10)], has_ended=True), early="newest")
    [only] = times_and_gaps(feed)
    assert 0 <= only < 1


class SlowlySwitched(ConnectionFeed):
    """A feed that gives other threads time to run in the middle of a switch between connections."""

    @property
    def _connection(self):
        return self.__dict__["_connection"]

    @_connection.setter
    def _connection(self, connection):
        time.sleep(0.001)
        self.__dict__["_connection"] = connection


def test_counts_agree_when_they_are_read_during_a_reconnect(caplog):
    caplog.set_level(logging.ERROR)
    connections = [FakeConnection([0.0]) for _ in range(40)]
    for number, connection in enumerate(connections):
        connection.skipped.num_packets = number
    feed = feed_of(*connections, VideoError("no more"), feed_class=SlowlySwitched)

    def watch():
        with pytest.raises(VideoError, match="no more"):
            list(feed.events())

    thread = threading.Thread(target=watch)
    thread.start()
    while thread.is_alive():
        counts = feed.skipped
        assert counts.num_packets == sum(range(counts.num_reconnects + 1))
    assert feed.skipped.num_reconnects == 39


def test_packets_skipped_during_a_seek_are_never_counted():
    counted = []

    class Seeking(FakeConnection):
        def seek(self, start_s):
            super().seek(start_s)
            self.skipped.num_packets = 50
            counted.append(feed.skipped.num_packets)
            self.skipped.num_packets = 0

    feed = feed_of(
        FakeConnection([0.0, 0.5], is_recording=True), Seeking([0.0, 0.5], is_recording=True, has_ended=True)
    )
    list(feed.events())
    assert counted == [1]
