"""The sampling of frames by their times, without a file."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamingvlm.errors import ConfigError
from streamingvlm.video.sampling_grid import SamplingGrid, sample

TICK_S = 1 / 90000


@dataclass(frozen=True)
class Frame:
    number: int
    time_s: float
    duration_s: float = 0.04


def sampled_numbers(times_s, grid, last_duration_s=0.04):
    frames = [Frame(i, float(t)) for i, t in enumerate(times_s)]
    frames[-1] = Frame(len(frames) - 1, float(times_s[-1]), last_duration_s)
    return [[frame.number for frame in turn] for turn in sample(frames, grid, tick_s=TICK_S)]


RATES = [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.3f}")
def test_five_minutes_at_any_rate_give_distinct_frames_in_every_turn(rate):
    times_s = [i / Fraction(rate) for i in range(int(300 * rate))]
    turns = sampled_numbers(times_s, SamplingGrid(), last_duration_s=float(1 / Fraction(rate)))
    assert len(turns) in (300, 301)
    flat = [number for turn in turns for number in turn]
    assert len(set(flat[:-1])) == len(flat) - 1
    assert flat == sorted(flat)
    for k, number in enumerate(flat[:-1]):
        assert times_s[number] <= Fraction(k, 2) + Fraction(1, 1000)
        assert times_s[number] > Fraction(k, 2) - 1 / Fraction(rate)


def test_a_frame_stamped_at_the_sampling_time_is_sampled_despite_rounding():
    assert sampled_numbers([0.0, 0.25, 0.5 + TICK_S / 2.1, 0.75], SamplingGrid()) == [[0, 2]]
    assert sampled_numbers([0.0, 0.25, 0.5 + TICK_S * 2, 0.75], SamplingGrid()) == [[0, 1]]


def test_a_tick_as_long_as_a_frame_does_not_pull_in_the_frame_after():
    frames = [Frame(i, i * 0.04) for i in range(50)]
    assert [[p.number for p in turn] for turn in sample(frames, SamplingGrid(), tick_s=0.04)] == [[0, 12], [25, 37]]


@pytest.mark.parametrize(
    ("fps", "turn_s", "num_frames"),
    [(2, 1, 2), (2, 0.4, 1), (1.5, 1, 2), (0.5, 2, 1), (7.3, 1.7, 12), (30, 0.5, 15), (2, 2, 4)],
)
def test_fractional_rates_and_turns_hold_the_rounded_number_of_frames(fps, turn_s, num_frames):
    grid = SamplingGrid(fps=fps, turn_s=turn_s)
    assert grid.num_frames == num_frames
    times_s = [i / 240 for i in range(240 * 12)]
    for index, turn in enumerate(sampled_numbers(times_s, grid, last_duration_s=1 / 240)[:-1]):
        assert turn == [round((index * turn_s + k / fps) * 240 - 0.499) for k in range(num_frames)]


def test_the_last_turn_needs_a_frame_that_begins_in_it_or_covers_it():
    grid = SamplingGrid()
    assert sampled_numbers([0.0, 0.5, 0.98], grid) == [[0, 1]]  # 20 ms of the next turn do not justify it
    assert sampled_numbers([0.0, 0.5, 1.0], grid) == [[0, 1], [2, 2]]
    assert sampled_numbers([0.0, 0.5], grid, last_duration_s=3.0) == [[0, 1], [1, 1], [1, 1], [1, 1]]
    assert sampled_numbers([0.0], grid) == [[0, 0]]


def test_a_gap_repeats_the_newest_frame():
    assert sampled_numbers([0.0, 0.5, 3.2, 3.6], SamplingGrid()) == [[0, 1], [1, 1], [1, 1], [1, 2]]


def test_reading_from_the_middle_samples_the_frame_shown_there():
    assert sampled_numbers([0.0, 0.9, 1.4, 1.9, 2.4], SamplingGrid(start_s=1.0)) == [[1, 2], [3, 4]]
    assert sampled_numbers([0.0, 0.5], SamplingGrid(start_s=10.0)) == []


@settings(max_examples=300, deadline=None)
@given(
    gaps=st.lists(st.floats(1e-3, 3.0), min_size=1, max_size=60),
    fps=st.floats(0.5, 8),
    turn_s=st.floats(0.3, 4),
)
def test_every_turn_is_full_and_holds_the_newest_frames_in_order(gaps, fps, turn_s):
    if round(fps * turn_s) < 1:
        return
    grid = SamplingGrid(fps=fps, turn_s=turn_s)
    times_s = [sum(gaps[:i]) for i in range(len(gaps))]
    for index, turn in enumerate(sampled_numbers(times_s, grid)):
        assert len(turn) == grid.num_frames
        for k, number in enumerate(turn):
            sample_s = grid.frame_time_s(index, k)
            newest = max(i for i, time_s in enumerate(times_s) if time_s <= sample_s + TICK_S / 2)
            assert number == newest


@pytest.mark.parametrize(
    "settings_", [{"fps": -1}, {"fps": 0}, {"turn_s": 0}, {"turn_s": float("nan")}, {"start_s": -1}, {"fps": 0.3}]
)
def test_invalid_settings_are_rejected_in_one_line_that_names_them(settings_):
    with pytest.raises(ConfigError, match=next(iter(settings_))) as caught:
        SamplingGrid(**settings_)
    assert "\n" not in str(caught.value)
