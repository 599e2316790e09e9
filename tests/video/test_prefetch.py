"""The background thread: bounded, stopped early, its errors raised in the consumer."""

import gc
import threading
import time
import weakref

import psutil
import pytest
import torch

from streamingvlm.video import SkipCounts, VideoInfo, VideoReader, open_video
from streamingvlm.video.prefetch import Prefetch
from streamingvlm.video.sampling_grid import SamplingGrid
from streamingvlm.video.source import DecodedFrame

FRAME = torch.zeros(3, 8, 8, dtype=torch.uint8)


class FakeSource:
    """Ten frames a second without end, or up to one that cannot be decoded."""

    def __init__(self, fails_at_s=float("inf")):
        self.info = VideoInfo(None, 8, 8, 10.0, "fake", 0)
        self.skipped = SkipCounts()
        self.tick_s = 0.001
        self.fails_at_s = fails_at_s
        self.num_decoded = 0
        self.closed_in = None

    def frames(self):
        while True:
            time_s = self.num_decoded / 10
            if time_s >= self.fails_at_s:
                raise OSError("the disk is gone")
            self.num_decoded += 1
            yield DecodedFrame(time_s, 0.1, lambda: FRAME)

    def close(self):
        self.closed_in = threading.current_thread()


def reader(source, prefetch=2):
    return VideoReader("fake.mp4", source, SamplingGrid(), prefetch=prefetch)


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode ")]


def wait_until(condition, patience_s=20.0):
    """Wait for another thread; a hang fails the test."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "the other thread did not get there"
        time.sleep(0.005)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_thread_works_ahead_by_at_most_its_depth(depth):
    made = []

    def items():
        for number in range(1000):
            made.append(number)
            yield number

    ahead = Prefetch(items(), depth=depth, name="decode test", stop=threading.Event())
    assert made == []
    assert next(ahead) == 0
    wait_until(lambda: len(made) == 1 + depth)
    time.sleep(0.05)
    assert len(made) == 1 + depth
    assert next(ahead) == 1
    wait_until(lambda: len(made) == 2 + depth)
    ahead.close()
    assert decoding_threads() == []


def test_nothing_is_decoded_before_the_first_turn_is_requested():
    source = FakeSource()
    with reader(source):
        assert (source.num_decoded, decoding_threads()) == (0, [])


def test_leaving_the_block_ends_the_thread_and_closes_the_file():
    source = FakeSource()
    with reader(source) as video:
        for turn in video:
            if turn.index == 3:
                break
        assert len(decoding_threads()) == 1
    assert decoding_threads() == []
    assert source.closed_in is threading.current_thread()
    assert list(video) == []
    video.close()


def test_iteration_resumes_without_a_loss():
    with reader(FakeSource()) as video:
        assert [next(video).index, next(video).index] == [0, 1]
        for turn in video:
            assert turn.index == 2
            break
        assert next(video).index == 3


def test_a_garbage_collected_reader_ends_its_thread():
    source = FakeSource()
    video = reader(source)
    next(video)
    reference = weakref.ref(video)
    del video
    gc.collect()
    assert reference() is None
    assert decoding_threads() == []
    assert source.closed_in is not None


def test_an_error_in_the_thread_is_raised_in_its_place():
    source = FakeSource(fails_at_s=3.2)
    video = reader(source)
    assert [next(video).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(video)
    assert list(video) == []
    video.close()
    assert decoding_threads() == []


def test_closing_from_another_thread_ends_a_blocked_loop():
    video = reader(FakeSource())
    received = []

    def watch():
        received.extend(turn.index for turn in video)

    consumer = threading.Thread(target=watch, daemon=True)
    consumer.start()
    wait_until(lambda: len(received) > 0 or decoding_threads())
    video.close()
    consumer.join(20)
    assert not consumer.is_alive()


def test_a_consumer_that_waits_only_after_close_gets_the_end():
    """The consumer is paused between the check of `_finished` and the wait for an item."""
    about_to_wait, closed = threading.Event(), threading.Event()

    class Held(Prefetch):
        @property
        def _ready(self):
            if threading.current_thread() is consumer:
                about_to_wait.set()
                closed.wait(20)
            return self.__dict__["_ready"]

        @_ready.setter
        def _ready(self, queue):
            self.__dict__["_ready"] = queue

    ahead = Held(iter(range(1000)), depth=1, name="decode test", stop=threading.Event())
    received = []
    consumer = threading.Thread(target=lambda: received.extend(ahead), daemon=True)
    consumer.start()
    assert about_to_wait.wait(20)
    ahead.close()
    closed.set()
    consumer.join(20)
    assert not consumer.is_alive()
    assert len(received) == 0


def test_close_may_come_while_the_thread_starts(frequent_switches):
    for delay in range(500):
        ahead = Prefetch(iter(range(3)), depth=1, name="decode test", stop=threading.Event())
        consumer = threading.Thread(target=list, args=(ahead,), daemon=True)
        consumer.start()
        sum(range(delay % 50))
        ahead.close()
        consumer.join(20)
        assert not consumer.is_alive()
    assert decoding_threads() == []


def test_many_readers_leak_neither_threads_nor_files(tmp_path, write_clip, regular_times):
    path = write_clip(tmp_path / "clip.mp4", regular_times(25, 100))
    process = psutil.Process()
    next(open_video(path))
    gc.collect()
    num_threads, num_files = process.num_threads(), process.num_fds()
    for _ in range(20):
        video = open_video(path)
        next(video)
        video.close()
    gc.collect()
    wait_until(lambda: process.num_threads() <= num_threads)  # a joined thread may still be exiting
    assert process.num_fds() <= num_files


def test_a_long_file_is_never_held_in_memory(tmp_path, write_clip, regular_times):
    options = {"preset": "ultrafast", "tune": "zerolatency"}
    path = write_clip(tmp_path / "long.mp4", regular_times(25, 500), size=(480, 360), codec_options=options)
    process = psutil.Process()
    resident = []
    with open_video(path, prefetch=2) as video:
        for _ in video:
            resident.append(process.memory_info().rss)
    assert len(resident) == 20
    whole_file = 500 * 480 * 360 * 3 // 2
    assert max(resident) - resident[2] < whole_file / 5
