"""Pushed frames are grouped into turns by their stream time."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import VideoError
from streamingvlm.serving.pushed_turns import PushedTurns
from streamingvlm.video.sampling_grid import SamplingGrid, sample
from streamingvlm.video.source import DecodedFrame


def turns_of(times_s, *, policy="wait", fps=2.0, turn_s=1.0, waiting_s=1000):
    """All turns of frames that are pushed at these times; frame number n has value n."""
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
        source.push(partial(torch.full, (3, 2, 2), number, dtype=torch.uint8), time_s)
    source.finish()
    return list(source)


def black():
    return torch.zeros(3, 2, 2, dtype=torch.uint8)


def shown(turn):
    return [int(frame[0, 0, 0]) for frame in turn.frames]


def test_frames_are_grouped_into_turns():
    turns = turns_of([0, 0.5, 1.0, 1.5])
    assert [(turn.index, turn.start_s, turn.end_s) for turn in turns] == [(0, 0, 1), (1, 1, 2)]
    assert [shown(turn) for turn in turns] == [[0, 1], [2, 3]]


@given(st.lists(st.floats(-0.12, 0.12), min_size=8, max_size=8))
def test_a_small_jitter_of_the_camera_drops_no_frame(jitter):
    turns = turns_of([max(0.0, k / 2 + shift) for k, shift in enumerate(jitter)])
    assert [shown(turn) for turn in turns] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [turn.num_repeated for turn in turns] == [0] * 4


@given(st.lists(st.floats(0, 60), max_size=60))
def test_any_times_give_turns_in_order(times_s):
    turns = turns_of(times_s)
    numbers = [number for turn in turns for number in shown(turn)]
    assert numbers == sorted(numbers)
    starts = [turn.start_s for turn in turns]
    assert starts == sorted(set(starts))
    assert all(turn.end_s - turn.start_s == 1 for turn in turns)


def test_a_gap_moves_the_clock():
    assert [turn.start_s for turn in turns_of([0, 0.5, 7.0, 7.5])] == [0, 7]


def test_a_moment_without_a_new_frame_repeats_the_frame_before_it():
    turns = turns_of([0.5, 1.0, 2.5])
    assert [shown(turn) for turn in turns] == [[0, 0], [1, 1], [1, 2]]
    assert [turn.num_repeated for turn in turns] == [1, 1, 1]


def test_a_faster_camera_is_subsampled():
    assert [shown(turn) for turn in turns_of([k / 30 for k in range(60)])] == [[0, 15], [30, 45]]


def test_a_change_of_size_resizes_the_turn():
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=9, max_waiting_bytes=10**6, max_frame_bytes=10**4
    )
    source.push(lambda: torch.zeros(3, 4, 4, dtype=torch.uint8), 0)
    source.push(lambda: torch.zeros(3, 6, 8, dtype=torch.uint8), 0.5)
    assert next(source).frames.shape == (2, 3, 6, 8)


def test_drop_gives_the_newest_turn_and_counts_the_others():
    turns = turns_of([0, 0.5, 1, 1.5, 2, 2.5], policy="drop")
    assert [(turn.start_s, turn.dropped_s) for turn in turns] == [(2, 2)]


def test_coalesce_merges_the_missed_turns():
    turns = turns_of([0, 0.5, 1, 1.5, 2, 2.5], policy="coalesce")
    assert [(turn.start_s, turn.end_s, turn.coalesced_s) for turn in turns] == [(0, 3, 2)]


def test_there_is_room_until_the_limit_and_again_after_a_turn_is_taken():
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=2, max_waiting_bytes=1, max_frame_bytes=12
    )
    pushed = 0
    while source.has_room:
        source.push(black, pushed / 2)
        pushed += 1
    assert pushed == 4
    next(source)
    assert source.has_room


@pytest.mark.parametrize("end", ["finish", "close"])
def test_after_the_end_no_frame_is_accepted(end):
    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=2, max_waiting_bytes=1, max_frame_bytes=12
    )
    source.push(black, 0)
    getattr(source, end)()
    assert not source.wants(5)
    assert not source.push(black, 5)
    assert len(list(source)) == (1 if end == "finish" else 0)


@pytest.mark.parametrize("rate", [2, 5, 8, 12, 24, 25, 30000 / 1001])
def test_pushed_frames_are_sampled_exactly_as_those_of_a_file(rate):
    times_s = [number / rate for number in range(round(7.6 * rate))]
    frames = [DecodedFrame(time_s, 1 / rate, None) for time_s in times_s]
    in_a_file = [[frames.index(frame) for frame in turn] for turn in sample(frames, SamplingGrid(), tick_s=1e-4)]
    assert [shown(turn) for turn in turns_of(times_s)] == in_a_file


def test_an_invalid_frame_is_reported_and_an_older_one_shown():
    def invalid():
        raise VideoError("cut off")

    source = PushedTurns(
        fps=2, turn_s=1, policy="wait", max_lag_s=3, max_waiting_s=9, max_waiting_bytes=10**6, max_frame_bytes=12
    )
    source.push(black, 0)
    source.push(invalid, 0.3)
    with pytest.raises(VideoError, match="cut off"):
        source.push(black, 0.6)
    with pytest.raises(VideoError, match="cut off"):
        source.push(invalid, 1.0)
    assert source.push(black, 1.0)
    assert torch.equal(next(source).frames, torch.zeros(2, 3, 2, 2, dtype=torch.uint8))
