"""The rules of time, without any file."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamingvlm.errors import ConfigError
from streamingvlm.video.clock import SamplingGrid, StreamClock, plausible_s, sample

TICK_S = 1 / 90000


@dataclass(frozen=True)
class Shown:
    number: int
    time_s: float
    duration_s: float = 0.04


def chunks(times_s, grid, last_duration_s=0.04):
    pictures = [Shown(i, float(t)) for i, t in enumerate(times_s)]
    pictures[-1] = Shown(len(pictures) - 1, float(times_s[-1]), last_duration_s)
    return [[picture.number for picture in chunk] for chunk in sample(pictures, grid, tick_s=TICK_S)]


RATES = [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.3f}")
def test_five_minutes_at_any_rate_give_distinct_frames_in_every_second(rate):
    times_s = [i / Fraction(rate) for i in range(int(300 * rate))]
    seconds = chunks(times_s, SamplingGrid(), last_duration_s=float(1 / Fraction(rate)))
    assert len(seconds) in (300, 301)
    flat = [number for second in seconds for number in second]
    assert len(set(flat[:-1])) == len(flat) - 1
    assert flat == sorted(flat)
    for k, number in enumerate(flat[:-1]):
        assert times_s[number] <= Fraction(k, 2) + Fraction(1, 1000)
        assert times_s[number] > Fraction(k, 2) - 1 / Fraction(rate)


def test_a_frame_stamped_at_the_moment_itself_is_taken_in_spite_of_rounding():
    assert chunks([0.0, 0.25, 0.5 + TICK_S / 2.1, 0.75], SamplingGrid()) == [[0, 2]]
    assert chunks([0.0, 0.25, 0.5 + TICK_S * 2, 0.75], SamplingGrid()) == [[0, 1]]


def test_a_tick_as_long_as_a_frame_does_not_pull_in_the_frame_after():
    pictures = [Shown(i, i * 0.04) for i in range(50)]
    assert [[p.number for p in chunk] for chunk in sample(pictures, SamplingGrid(), tick_s=0.04)] == [[0, 12], [25, 37]]


@pytest.mark.parametrize(
    ("fps", "turn_s", "num_frames"),
    [(2, 1, 2), (2, 0.4, 1), (1.5, 1, 2), (0.5, 2, 1), (7.3, 1.7, 12), (30, 0.5, 15), (2, 2, 4)],
)
def test_fractional_rates_and_chunks_hold_the_rounded_number_of_frames(fps, turn_s, num_frames):
    grid = SamplingGrid(fps=fps, turn_s=turn_s)
    assert grid.num_frames == num_frames
    times_s = [i / 240 for i in range(240 * 12)]
    for index, chunk in enumerate(chunks(times_s, grid, last_duration_s=1 / 240)[:-1]):
        assert chunk == [round((index * turn_s + k / fps) * 240 - 0.499) for k in range(num_frames)]


def test_the_last_chunk_needs_a_picture_of_its_own_or_one_that_stays():
    grid = SamplingGrid()
    assert chunks([0.0, 0.5, 0.98], grid) == [[0, 1]]  # 20 ms reach into the next second: no reason to show one
    assert chunks([0.0, 0.5, 1.0], grid) == [[0, 1], [2, 2]]
    assert chunks([0.0, 0.5], grid, last_duration_s=3.0) == [[0, 1], [1, 1], [1, 1], [1, 1]]
    assert chunks([0.0], grid) == [[0, 0]]


@pytest.mark.parametrize("absurd_s", [-1.0, 0.0, 1e9, float("inf"), float("nan")])
def test_the_absurd_length_of_a_damaged_picture_is_not_believed(absurd_s):
    assert plausible_s(absurd_s, 0.04) == 0.04
    assert plausible_s(7.0, 0.04) == 7.0


def test_a_gap_repeats_the_newest_picture():
    assert chunks([0.0, 0.5, 3.2, 3.6], SamplingGrid()) == [[0, 1], [1, 1], [1, 1], [1, 2]]


def test_reading_from_the_middle_takes_the_picture_that_stands_there():
    assert chunks([0.0, 0.9, 1.4, 1.9, 2.4], SamplingGrid(start_s=1.0)) == [[1, 2], [3, 4]]
    assert chunks([0.0, 0.5], SamplingGrid(start_s=10.0)) == []


@settings(max_examples=300, deadline=None)
@given(
    gaps=st.lists(st.floats(1e-3, 3.0), min_size=1, max_size=60),
    fps=st.floats(0.5, 8),
    turn_s=st.floats(0.3, 4),
)
def test_every_chunk_is_full_and_holds_the_newest_pictures_in_order(gaps, fps, turn_s):
    if round(fps * turn_s) < 1:
        return
    grid = SamplingGrid(fps=fps, turn_s=turn_s)
    times_s = [sum(gaps[:i]) for i in range(len(gaps))]
    for index, chunk in enumerate(chunks(times_s, grid)):
        assert len(chunk) == grid.num_frames
        for k, number in enumerate(chunk):
            moment_s = grid.frame_time_s(index, k)
            newest = max(i for i, time_s in enumerate(times_s) if time_s <= moment_s + TICK_S / 2)
            assert number == newest


@pytest.mark.parametrize(
    "settings_", [{"fps": -1}, {"fps": 0}, {"turn_s": 0}, {"turn_s": float("nan")}, {"start_s": -1}, {"fps": 0.3}]
)
def test_settings_without_sense_are_refused_in_one_line_that_names_them(settings_):
    with pytest.raises(ConfigError, match=next(iter(settings_))) as caught:
        SamplingGrid(**settings_)
    assert "\n" not in str(caught.value)


def told(stamps_s, duration_s=0.5):
    clock = StreamClock(frame_s=duration_s)
    return clock, [clock.tell(stamp_s, duration_s) for stamp_s in stamps_s]


def test_stream_time_begins_at_zero():
    _, times_s = told([5000.0, 5000.5, 5001.0])
    assert times_s == [0.0, 0.5, 1.0]


def test_a_file_without_stamps_counts_frames():
    _, times_s = told([None, None, None])
    assert times_s == [0.0, 0.5, 1.0]


def test_stamps_that_begin_late_go_on_from_the_count():
    _, times_s = told([None, None, 77.0, 77.5])
    assert times_s == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("jump_s", [-3.0, -95443.7, 5000.0])
def test_a_break_of_the_clock_is_closed_and_counted(jump_s):
    clock, times_s = told([10.0, 10.5, 11.0 + jump_s, 11.5 + jump_s])
    assert times_s == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert clock.num_jumps == 1


def test_a_short_gap_is_kept_and_measured():
    clock, times_s = told([0.0, 0.5, 4.0])
    assert times_s == [0.0, 0.5, 4.0]
    assert (clock.num_jumps, clock.gap_s) == (0, 3.0)


def test_a_picture_out_of_order_is_too_late():
    clock, times_s = told([0.0, 0.5, 0.3, 1.0])
    assert times_s == [0.0, 0.5, None, 1.0]
    assert clock.num_jumps == 0
