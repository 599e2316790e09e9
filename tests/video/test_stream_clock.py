"""The mapping of a file's timestamps to stream time, without a file."""

import pytest

from streamingvlm.video.stream_clock import StreamClock, plausible_s


@pytest.mark.parametrize("absurd_s", [-1.0, 0.0, 1e9, float("inf"), float("nan")])
def test_the_absurd_duration_of_a_damaged_frame_is_replaced(absurd_s):
    assert plausible_s(absurd_s, 0.04) == 0.04
    assert plausible_s(7.0, 0.04) == 7.0


def stream_times(stamps_s, duration_s=0.5):
    clock = StreamClock(frame_s=duration_s)
    return clock, [clock.to_stream_time(stamp_s, duration_s) for stamp_s in stamps_s]


def test_stream_time_begins_at_zero():
    _, times_s = stream_times([5000.0, 5000.5, 5001.0])
    assert times_s == [0.0, 0.5, 1.0]


def test_a_file_without_timestamps_counts_frames():
    _, times_s = stream_times([None, None, None])
    assert times_s == [0.0, 0.5, 1.0]


def test_timestamps_that_begin_late_continue_from_the_count():
    _, times_s = stream_times([None, None, 77.0, 77.5])
    assert times_s == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("jump_s", [-3.0, -95443.7, 5000.0])
def test_a_break_of_the_clock_is_closed_and_counted(jump_s):
    clock, times_s = stream_times([10.0, 10.5, 11.0 + jump_s, 11.5 + jump_s])
    assert times_s == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert clock.num_jumps == 1


def test_a_short_gap_is_kept_and_measured():
    clock, times_s = stream_times([0.0, 0.5, 4.0])
    assert times_s == [0.0, 0.5, 4.0]
    assert (clock.num_jumps, clock.gap_s) == (0, 3.0)


def test_a_frame_out_of_order_is_late():
    clock, times_s = stream_times([0.0, 0.5, 0.3, 1.0])
    assert times_s == [0.0, 0.5, None, 1.0]
    assert clock.num_jumps == 0
