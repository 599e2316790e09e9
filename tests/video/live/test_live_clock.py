"""Live time and the choice of pictures, with time that is told to them: nothing here waits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.video.clock import SamplingGrid
from streamingvlm.video.live.clock import MAX_DRIFT, LiveClock, LiveSampler
from streamingvlm.video.source import DecodedFrame

START_S = 1000.0  # real time does not begin at 0


def tell_all(clock, stamps_s, came_s):
    return [clock.tell(stamp_s, START_S + at_s) for stamp_s, at_s in zip(stamps_s, came_s, strict=True)]


def test_stream_time_begins_at_zero_and_keeps_the_streams_own_intervals():
    stamps_s = [50.0 + i / 25 for i in range(100)]
    shaken_s = [i / 25 + 0.02 * (i % 3) for i in range(100)]  # the network delays some pictures
    told = tell_all(LiveClock(), stamps_s, shaken_s)
    assert told == pytest.approx([i / 25 for i in range(100)])


def test_after_a_break_stream_time_is_where_real_time_is():
    clock = LiveClock()
    tell_all(clock, [0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    clock.reconnected()
    assert tell_all(clock, [7000.0, 7000.5], [8.0, 8.5]) == pytest.approx([8.0, 8.5])
    assert clock.lost_s == pytest.approx(7.0)


def test_of_a_burst_all_but_the_newest_are_old():
    clock = LiveClock()
    # Two seconds of pictures come in a moment, then one each half second, as they are captured.
    tell_all(clock, [0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 0.01, 0.02, 0.03, 0.04])
    assert tell_all(clock, [2.5, 3.0], [0.54, 1.04]) == pytest.approx([0.54, 1.04])
    assert clock.captured_s(0.54, START_S + 5) == pytest.approx(START_S + 0.54)


@given(ahead_s=st.lists(st.floats(-3, 3), min_size=1, max_size=50))
def test_stream_time_of_a_camera_never_runs_backwards_nor_ahead_of_real_time(ahead_s):
    clock = LiveClock()
    newest_s = 0.0
    for second, ahead in enumerate(ahead_s):
        told_s = clock.tell(100 + second + ahead, START_S + second)
        assert newest_s <= told_s <= second + 1e-9
        newest_s = told_s


@pytest.mark.parametrize("slow", [1e-5, 5e-4])
def test_a_camera_whose_clock_is_slow_stays_with_real_time(slow):
    clock = LiveClock()
    week = range(0, 200_000, 2)
    told = [clock.tell(second * (1 - slow), START_S + second) for second in week]
    assert abs(told[-1] - week[-1]) < 0.1


def test_a_delay_that_grows_faster_than_clocks_drift_is_an_age():
    clock = LiveClock()
    for second in range(300):  # this machine decodes one second in two
        told_s = clock.tell(float(second), START_S + 2 * second)
    age_s = START_S + 598 - clock.captured_s(told_s, START_S + 598)
    assert age_s == pytest.approx(299, abs=600 * MAX_DRIFT)


def test_what_is_to_be_shown_in_order_waits_for_its_time():
    clock = LiveClock("wait")
    told = tell_all(clock, [0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 0.2, 0.3])
    assert told == [0.0, 1.0, 2.0, 3.0]
    assert clock.wait_s(3.0, START_S + 0.3) == pytest.approx(2.7)
    # The next segment is late: what follows is shown later, and stream time goes on without a gap.
    assert clock.tell(4.0, START_S + 6.0) == 4.0
    assert clock.wait_s(4.0, START_S + 6.0) == 0
    assert clock.wait_s(5.0, START_S + 6.1) == pytest.approx(0.9)


def test_nobody_waits_an_hour_for_a_stream_that_broke_its_own_clock():
    clock = LiveClock("wait")
    tell_all(clock, [0.0, 1.0], [0.0, 1.0])
    told_s = clock.tell(3600.0, START_S + 2.0)
    assert told_s + clock.wait_s(told_s, START_S + 2.0) == pytest.approx(2.0)


def test_a_source_that_is_held_back_keeps_its_own_time():
    clock = LiveClock("keep")
    assert tell_all(clock, [5.0, 6.0, 7.0, 8.0], [0.0, 0.1, 4.0, 9.0]) == [0.0, 1.0, 2.0, 3.0]
    assert clock.captured_s(1.0, START_S + 0.1) == START_S + 0.1  # it came faster than time goes by


def test_without_stamps_the_moment_of_coming_counts():
    clock = LiveClock()
    assert [clock.tell(None, START_S + at_s) for at_s in (0.0, 0.3, 1.7)] == pytest.approx([0.0, 0.3, 1.7])


def picture(time_s):
    return DecodedFrame(time_s, 0.0, lambda: torch.zeros(3, 2, 2, dtype=torch.uint8))


def chosen(times_s, **grid):
    """Number of the second and times of the pictures that are shown in it."""
    sampler = LiveSampler(SamplingGrid(**grid))
    seconds = [second for time_s in times_s for second in sampler.add(picture(time_s))]
    return [(index, [p.time_s for p in shown]) for index, shown in [*seconds, *sampler.flush()]]


def test_each_frame_shows_the_newest_picture_at_its_moment():
    assert chosen([i / 10 for i in range(25)], fps=2) == [(0, [0.1, 0.6]), (1, [1.1, 1.6]), (2, [2.1, 2.4])]


def test_pictures_that_come_a_little_early_or_late_are_each_shown_once():
    shaken = [0.0, 0.55, 0.97, 1.58, 1.95, 2.45, 3.1, 3.4]
    shown = [time_s for _, times_s in chosen(shaken, fps=2) for time_s in times_s]
    assert shown == shaken


def test_over_a_gap_nothing_is_repeated_and_the_numbers_jump():
    assert chosen([0.0, 0.5, 1.0, 1.5, 7.3, 7.6, 8.1, 8.6], fps=2) == [
        (0, [0.0, 0.5]),
        (1, [1.0, 1.5]),
        (7, [7.3, 7.6]),
        (8, [8.1, 8.6]),
    ]


def test_a_slow_camera_gives_a_second_for_each_picture():
    assert chosen([0.0, 5.0, 10.0], fps=2) == [(0, [0.0, 0.0]), (5, [5.0, 5.0]), (10, [10.0, 10.0])]


def test_a_second_is_given_out_when_it_is_known_that_no_picture_is_to_come_for_it():
    sampler = LiveSampler(SamplingGrid(fps=2))
    assert list(sampler.add(picture(0.0))) == []
    assert list(sampler.add(picture(0.5))) == []
    assert list(sampler.advance(0.6)) == []
    [(index, shown)] = sampler.advance(0.7)
    assert (index, [p.time_s for p in shown]) == (0, [0.0, 0.5])
    assert list(sampler.advance(30.0)) == []  # the picture of 0.5 s is not shown again
    assert list(sampler.flush()) == []


@given(
    gaps_s=st.lists(st.floats(0.001, 4), min_size=1, max_size=60),
    fps=st.sampled_from([1.0, 2.0, 3.0, 8.0]),
    turn_s=st.sampled_from([1.0, 2.0]),
)
def test_whatever_comes_the_seconds_are_in_order_and_none_shows_only_what_was_shown(gaps_s, fps, turn_s):
    times_s = [sum(gaps_s[:i]) for i in range(len(gaps_s))]
    seconds = chosen(times_s, fps=fps, turn_s=turn_s)
    indices = [index for index, _ in seconds]
    assert indices == sorted(set(indices))
    newest_s = -math.inf
    for index, shown_s in seconds:
        assert len(shown_s) == fps * turn_s
        assert shown_s == sorted(shown_s)
        assert shown_s[0] >= newest_s and shown_s[-1] > newest_s
        assert shown_s[-1] <= (index + 1) * turn_s
        newest_s = shown_s[-1]
