"""Frames pushed from Python: from any thread, in bounded memory, at their capture times."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from streamingvlm.config import LiveConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video import PushedFrames, open_source


def frame(value):
    return torch.full((3, 4, 6), value, dtype=torch.uint8)


def times_and_values(turns):
    return [(s.start_s, s.frames[:, 0, 0, 0].tolist()) for s in turns]


def test_frames_are_sampled_at_their_capture_times():
    frames = PushedFrames()
    began_s = time.monotonic() - 100
    for i, at_s in enumerate([0, 0.5, 1.0, 1.5, 7.1, 7.6, 8.2]):
        frames.push(frame(i), captured_s=began_s + at_s)
    frames.close()
    with open_source(frames, live=LiveConfig(policy="wait")) as video:
        turns = list(video)
    assert times_and_values(turns) == [(0, [0, 1]), (1, [2, 3]), (7, [4, 5]), (8, [5, 6])]
    assert [s.captured_s - began_s for s in turns] == pytest.approx([0.5, 1.5, 7.6, 8.2])


def test_a_turn_is_yielded_when_it_is_over_without_a_later_frame():
    frames = PushedFrames()
    with open_source(frames) as video:
        frames.push(frame(1))
        turn = next(video)
        assert 0.5 < time.monotonic() - turn.captured_s < 5
        assert times_and_values([turn]) == [(0, [1, 1])]


def test_many_threads_may_push():
    frames = PushedFrames(max_frames=10_000)
    began_s = time.monotonic()

    def push_all():
        for _ in range(200):
            frames.push(frame(7))

    threads = [threading.Thread(target=push_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frames.close()
    taken = [frames.take(0) for _ in range(1600)]
    with pytest.raises(EOFError):
        frames.take(0)
    assert all(captured_s >= began_s for _, captured_s in taken)


@pytest.mark.parametrize("limits", [{"max_frames": 5}, {"max_bytes": 5 * 72}])
def test_the_oldest_frames_are_dropped_when_there_is_no_room(limits):
    frames = PushedFrames(**limits)
    for i in range(12):
        frames.push(frame(i))
    assert frames.num_dropped == 7
    assert [int(frames.take(0)[0].max()) for _ in range(5)] == [7, 8, 9, 10, 11]
    assert frames.take(0) is None


def test_push_can_wait_for_room_until_close():
    frames = PushedFrames(max_frames=1)
    frames.push(frame(0))
    ended = threading.Event()

    def push_more():
        frames.push(frame(1), wait=True)
        with pytest.raises(VideoError, match=r"after close\(\)"):
            frames.push(frame(2), wait=True)
        ended.set()

    thread = threading.Thread(target=push_more)
    thread.start()
    assert not ended.wait(0.05)
    assert int(frames.take(1)[0].max()) == 0
    while not frames._frames:  # until the other thread has pushed its first
        time.sleep(0.001)
    assert not ended.wait(0.05)
    frames.close()
    thread.join(10)
    assert ended.is_set() and frames.num_dropped == 0


def test_a_frame_may_have_any_form_and_is_copied():
    frames = PushedFrames()
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    expected = torch.from_numpy(image.copy()).permute(2, 0, 1)
    for form in (Image.fromarray(image), expected.clone(), image.transpose(2, 0, 1), image):
        frames.push(form)
    image[:] = 0
    assert all(torch.equal(frames.take(0)[0], expected) for _ in range(4))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 4, 6),
        torch.zeros(4, 6, 5, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 6, dtype=torch.uint8),
        torch.zeros(3, 0, 6, dtype=torch.uint8),
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
    ],
)
def test_an_invalid_frame_is_rejected_by_push(wrong):
    frames = PushedFrames()
    with pytest.raises(VideoError, match="expected uint8"):
        frames.push(wrong)
    assert frames.take(0) is None


def test_a_frame_over_the_limit_and_limits_of_zero_are_rejected():
    with pytest.raises(VideoError, match="max_bytes"):
        PushedFrames(max_bytes=10).push(frame(0), wait=True)
    for limits in ({"max_frames": 0}, {"max_bytes": 0}):
        with pytest.raises(ConfigError, match=next(iter(limits))):
            PushedFrames(**limits)


def test_frames_that_are_out_of_order_are_skipped():
    frames = PushedFrames()
    began_s = time.monotonic() - 100
    for i, at_s in enumerate([0, 0.5, 0.3, 1.0, 1.5]):
        frames.push(frame(i), captured_s=began_s + at_s)
    frames.close()
    with open_source(frames, live=LiveConfig(policy="wait")) as video:
        assert times_and_values(video) == [(0, [0, 1]), (1, [3, 4])]


def test_closing_the_reader_leaves_the_pushed_frames_open():
    frames = PushedFrames()
    video = open_source(frames)
    video.close()
    frames.push(frame(0))
    assert list(video) == []
