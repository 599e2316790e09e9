"""The live clock and the live sampler, with simulated time: nothing here waits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.video.live.live_clock import MAX_DRIFT, LiveClock
from streamingvlm.video.live.live_sampler import LiveSampler
from streamingvlm.video.sampling_grid import SamplingGrid, sample
from streamingvlm.video.source import DecodedFrame

START_S = 1000.0  # real time does not begin at 0


def to_stream_times(clock, stamps_s, arrived_s):
    return [clock.to_stream_time(stamp_s, START_S + at_s) for stamp_s, at_s in zip(stamps_s, arrived_s, strict=True)]


def test_stream_time_begins_at_zero_and_keeps_the_streams_own_intervals():
    stamps_s = [50.0 + i / 25 for i in range(100)]
    jittered_s = [i / 25 + 0.02 * (i % 3) for i in range(100)]  # the network delays some frames
    times_s = to_stream_times(LiveClock(), stamps_s, jittered_s)
    assert times_s == pytest.approx([i / 25 for i in range(100)])


def test_after_a_break_stream_time_resumes_at_real_time():
    clock = LiveClock()
    to_stream_times(clock, [0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    clock.reconnect()
    assert to_stream_times(clock, [7000.0, 7000.5], [8.0, 8.5]) == pytest.approx([8.0, 8.5])
    assert clock.lost_s == pytest.approx(7.0)


def test_of_a_burst_all_but_the_newest_are_old():
    clock = LiveClock()
    # Two seconds of frames arrive at once, then one each half second, as they are captured.
    to_stream_times(clock, [0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 0.01, 0.02, 0.03, 0.04])
    assert to_stream_times(clock, [2.5, 3.0], [0.54, 1.04]) == pytest.approx([0.54, 1.04])
    assert clock.captured_s(0.54, START_S + 5) == pytest.approx(START_S + 0.54)


@given(ahead_s=st.lists(st.floats(-3, 3), min_size=1, max_size=50))
def test_stream_time_of_a_camera_never_runs_backwards_nor_ahead_of_real_time(ahead_s):
    clock = LiveClock()
    newest_s = 0.0
    for second, ahead in enumerate(ahead_s):
        time_s = clock.to_stream_time(100 + second + ahead, START_S + second)
        assert newest_s <= time_s <= second + 1e-9
        newest_s = time_s


@pytest.mark.parametrize("slow", [1e-5, 5e-4])
def test_a_camera_whose_clock_is_slow_stays_with_real_time(slow):
    clock = LiveClock()
    week = range(0, 200_000, 2)
    times_s = [clock.to_stream_time(second * (1 - slow), START_S + second) for second in week]
    assert abs(times_s[-1] - week[-1]) < 0.1


def test_a_delay_that_grows_faster_than_clock_drift_counts_as_age():
    clock = LiveClock()
    for second in range(300):  # this machine decodes at half of real time
        time_s = clock.to_stream_time(float(second), START_S + 2 * second)
    age_s = START_S + 598 - clock.captured_s(time_s, START_S + 598)
    assert age_s == pytest.approx(299, abs=600 * MAX_DRIFT)


def test_frames_of_a_paced_stream_wait_for_their_time():
    clock = LiveClock("wait")
    times_s = to_stream_times(clock, [0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 0.2, 0.3])
    assert times_s == [0.0, 1.0, 2.0, 3.0]
    assert clock.wait_s(3.0, START_S + 0.3) == pytest.approx(2.7)
    # The next segment is late: later frames are shown later, and stream time has no gap.
    assert clock.to_stream_time(4.0, START_S + 6.0) == 4.0
    assert clock.wait_s(4.0, START_S + 6.0) == 0
    assert clock.wait_s(5.0, START_S + 6.1) == pytest.approx(0.9)


def test_a_jump_of_an_hour_in_the_timestamps_causes_no_wait():
    clock = LiveClock("wait")
    to_stream_times(clock, [0.0, 1.0], [0.0, 1.0])
    time_s = clock.to_stream_time(3600.0, START_S + 2.0)
    assert time_s + clock.wait_s(time_s, START_S + 2.0) == pytest.approx(2.0)


def test_a_source_that_is_held_back_keeps_its_own_timestamps():
    clock = LiveClock("keep")
    assert to_stream_times(clock, [5.0, 6.0, 7.0, 8.0], [0.0, 0.1, 4.0, 9.0]) == [0.0, 1.0, 2.0, 3.0]
    assert clock.captured_s(1.0, START_S + 0.1) == START_S + 0.1  # it arrived faster than real time


def test_without_timestamps_the_arrival_time_counts():
    clock = LiveClock()
    assert [clock.to_stream_time(None, START_S + at_s) for at_s in (0.0, 0.3, 1.7)] == pytest.approx([0.0, 0.3, 1.7])


def decoded_frame(time_s):
    return DecodedFrame(time_s, 0.0, lambda: torch.zeros(3, 2, 2, dtype=torch.uint8))


def sampled(times_s, **grid):
    """The index of each turn and the times of its frames."""
    sampler = LiveSampler(SamplingGrid(**grid), tick_s=2e-6)
    turns = [turn for time_s in times_s for turn in sampler.add(decoded_frame(time_s))]
    return [(index, [frame.time_s for frame in shown]) for index, shown in [*turns, *sampler.flush()]]


def test_each_sample_is_the_newest_frame_at_its_time():
    assert sampled([i / 10 for i in range(25)], fps=2) == [(0, [0.0, 0.5]), (1, [1.0, 1.5]), (2, [2.0, 2.4])]


@pytest.mark.parametrize("rate", [2, 2.5, 5, 8, 12, 24, 25, 30000 / 1001, 60])
@pytest.mark.parametrize("phase_s", [0.0, 0.011])
def test_a_live_source_is_sampled_as_a_file_is(rate, phase_s):
    times_s = [0.0] + [phase_s + i / rate for i in range(1, round(30 * rate))]
    grid = SamplingGrid(fps=2)
    frames = [decoded_frame(time_s) for time_s in times_s]
    in_file = [[frame.time_s for frame in shown] for shown in sample(frames, grid, tick_s=2e-6)]
    live = [shown for _, shown in sampled(times_s, fps=2)]
    if rate == 2 and phase_s:  # a camera of the requested rate is given each of its frames once
        assert live[:-1] == [times_s[i : i + 2] for i in range(0, 58, 2)]
    else:
        assert live == in_file


def test_frames_with_jitter_are_each_sampled_once():
    jittered = [0.0, 0.55, 0.97, 1.58, 1.95, 2.45, 3.1, 3.4]
    shown = [time_s for _, times_s in sampled(jittered, fps=2) for time_s in times_s]
    assert shown == jittered


def test_over_a_gap_nothing_is_repeated_and_the_indices_jump():
    assert sampled([0.0, 0.5, 1.0, 1.5, 7.3, 7.5, 8.0, 8.4], fps=2) == [
        (0, [0.0, 0.5]),
        (1, [1.0, 1.5]),
        (7, [7.3, 7.5]),
        (8, [8.0, 8.4]),
    ]


def test_a_slow_camera_gives_a_turn_for_each_frame():
    assert sampled([0.0, 5.0, 10.0], fps=2) == [(0, [0.0, 0.0]), (5, [5.0, 5.0]), (10, [10.0, 10.0])]


def test_a_turn_is_yielded_once_no_more_frames_can_come_for_it():
    sampler = LiveSampler(SamplingGrid(fps=2), tick_s=2e-6)
    assert list(sampler.add(decoded_frame(0.0))) == []
    assert list(sampler.add(decoded_frame(0.5))) == []
    assert list(sampler.advance(0.6)) == []
    [(index, shown)] = sampler.advance(0.7)
    assert (index, [frame.time_s for frame in shown]) == (0, [0.0, 0.5])
    assert list(sampler.advance(30.0)) == []  # the frame of 0.5 s is not repeated
    assert list(sampler.flush()) == []


@given(
    gaps_s=st.lists(st.floats(0.001, 4), min_size=1, max_size=60),
    fps=st.sampled_from([1.0, 2.0, 3.0, 8.0]),
    turn_s=st.sampled_from([1.0, 2.0]),
)
def test_turns_are_in_order_and_each_has_a_new_frame(gaps_s, fps, turn_s):
    times_s = [sum(gaps_s[:i]) for i in range(len(gaps_s))]
    turns = sampled(times_s, fps=fps, turn_s=turn_s)
    indices = [index for index, _ in turns]
    assert indices == sorted(set(indices))
    newest_s = -math.inf
    for index, shown_s in turns:
        assert len(shown_s) == fps * turn_s
        assert shown_s == sorted(shown_s)
        assert shown_s[0] >= newest_s and shown_s[-1] > newest_s
        assert shown_s[-1] <= (index + 1) * turn_s
        newest_s = shown_s[-1]
