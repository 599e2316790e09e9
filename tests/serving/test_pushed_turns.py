"""Pushed frames become seconds at the time that they are given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.serving.pushed_turns import PushedTurns


def turns_of(times_s, *, policy="wait", fps=2.0, turn_s=1.0, waiting_s=1000):
    """All seconds of frames that are pushed at these times; frame number n is of value n."""
    source = PushedTurns(
        fps=fps,
        turn_s=turn_s,
        policy=policy,
        max_lag_s=3,
        max_waiting_s=waiting_s,
        max_waiting_bytes=10**8,
        max_frame_bytes=12,
    )
    for number, time_s in enumerate(times_s):
        source.push(torch.full((3, 2, 2), number, dtype=torch.uint8), time_s)
    source.finish()
    return list(source)


def shown(second):
    return [int(frame[0, 0, 0]) for frame in second.frames]


def test_frames_at_their_moments_make_seconds():
    seconds = turns_of([0, 0.5, 1.0, 1.5])
    assert [(second.index, second.start_s, second.end_s) for second in seconds] == [(0, 0, 1), (1, 1, 2)]
    assert [shown(second) for second in seconds] == [[0, 1], [2, 3]]


@given(st.lists(st.floats(-0.24, 0.24), min_size=8, max_size=8))
def test_a_camera_that_is_early_or_late_by_a_little_loses_nothing(jitter):
    seconds = turns_of([max(0.0, k / 2 + shift) for k, shift in enumerate(jitter)])
    assert [shown(second) for second in seconds] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [second.num_repeated for second in seconds] == [0] * 4


@given(st.lists(st.floats(0, 60), max_size=60))
def test_times_of_any_kind_give_seconds_in_order_and_never_look_back(times_s):
    seconds = turns_of(times_s)
    numbers = [number for second in seconds for number in shown(second)]
    assert numbers == sorted(numbers)
    starts = [second.start_s for second in seconds]
    assert starts == sorted(set(starts))
    assert all(second.end_s - second.start_s == 1 for second in seconds)


def test_a_gap_moves_the_clock():
    assert [second.start_s for second in turns_of([0, 0.5, 7.0, 7.5])] == [0, 7]


def test_a_moment_without_a_picture_shows_the_one_before():
    seconds = turns_of([0.5, 1.0, 2.5])
    assert [shown(second) for second in seconds] == [[0, 0], [1, 1], [2, 2]]
    assert [second.num_repeated for second in seconds] == [1, 1, 1]


def test_a_faster_camera_is_thinned():
    assert [shown(second) for second in turns_of([k / 30 for k in range(60)])] == [[0, 8], [23, 38], [53, 53]]


def test_a_change_of_size_shows_the_second_in_the_new_one():
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=9, max_waiting_bytes=10**6, max_frame_bytes=10**4
    )
    source.push(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)
    source.push(torch.zeros(3, 6, 8, dtype=torch.uint8), 0.5)
    assert next(source).frames.shape == (2, 3, 6, 8)


def test_the_newest_second_is_taken_and_the_others_are_counted():
    seconds = turns_of([0, 0.5, 1, 1.5, 2, 2.5], policy="drop")
    assert [(second.start_s, second.dropped_s) for second in seconds] == [(2, 2)]


def test_missed_seconds_are_looked_at_together():
    seconds = turns_of([0, 0.5, 1, 1.5, 2, 2.5], policy="coalesce")
    assert [(second.start_s, second.end_s, second.coalesced_s) for second in seconds] == [(0, 3, 2)]


def test_there_is_room_until_the_bound_and_again_after_a_second_is_taken():
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=2, max_waiting_bytes=1, max_frame_bytes=12
    )
    frame = torch.zeros(3, 2, 2, dtype=torch.uint8)
    pushed = 0
    while source.has_room:
        source.push(frame, pushed / 2)
        pushed += 1
    assert pushed == 4
    next(source)
    assert source.has_room


@pytest.mark.parametrize("end", ["finish", "close"])
def test_after_the_end_nothing_is_taken(end):
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=2, max_waiting_bytes=1, max_frame_bytes=12
    )
    source.push(torch.zeros(3, 2, 2, dtype=torch.uint8), 0)
    getattr(source, end)()
    assert not source.wants(5)
    assert not source.push(torch.zeros(3, 2, 2, dtype=torch.uint8), 5)
    assert len(list(source)) == (1 if end == "finish" else 0)
