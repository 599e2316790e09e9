"""The lag policies, with a model whose slowness is told and time that is counted: nothing here waits but threads."""

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import VideoError
from streamingvlm.video.clock import VideoTurn
from streamingvlm.video.live.backlog import DETAILS, Backlog, thinned

POLICIES = ["wait", "drop", "coalesce", "degrade"]


def backlog(policy, *, num_frames=2, max_frames=64, max_bytes=10**6, max_lag_s=3.0, turn_s=1.0):
    return Backlog(
        policy,
        num_frames=num_frames,
        max_frames=max_frames,
        max_bytes=max_bytes,
        max_lag_s=max_lag_s,
        turn_s=turn_s,
    )


def second(start_s, num_frames=2, height=2, width=2):
    """A second whose frames carry when they were captured, in tenths of a second."""
    times_s = [start_s + k / num_frames for k in range(num_frames)]
    frames = torch.stack([torch.full((3, height, width), round(10 * t) % 256, dtype=torch.uint8) for t in times_s])
    return VideoTurn(int(start_s), start_s, start_s + 1.0, frames, captured_s=times_s[-1])


def spans(seconds):
    return [(s.start_s, s.end_s) for s in seconds]


def take_all(waiting):
    waiting.end()
    return list(iter(waiting.take, None))


def test_wait_gives_every_second():
    waiting = backlog("wait")
    for start_s in range(5):
        waiting.put(second(start_s))
    assert spans(take_all(waiting)) == [(i, i + 1) for i in range(5)]


def test_drop_gives_the_newest_and_tells_what_went_by():
    waiting = backlog("drop")
    for start_s in (0, 1, 2, 7, 8):
        waiting.put(second(start_s))
    [newest] = take_all(waiting)
    assert (newest.start_s, newest.dropped_s, newest.coalesced_s) == (8, 4.0, 0.0)


def test_coalesce_makes_one_turn_of_what_was_missed():
    waiting = backlog("coalesce")
    for start_s in range(4):
        waiting.put(second(start_s))
    [turn] = take_all(waiting)
    assert spans([turn]) == [(0, 4)]
    assert (turn.index, turn.coalesced_s, turn.dropped_s, turn.captured_s) == (0, 3.0, 0.0, 3.5)
    assert turn.frames[:, 0, 0, 0].tolist() == [15, 35]  # the newest of each half, so the newest of all


def test_coalesce_does_not_speak_of_time_in_which_there_was_no_stream():
    waiting = backlog("coalesce")
    for start_s in (0, 1, 9, 10, 11):
        waiting.put(second(start_s))
    assert spans(take_all(waiting)) == [(0, 2), (9, 12)]


def test_coalesce_over_a_change_of_resolution():
    waiting = backlog("coalesce")
    waiting.put(second(0, height=8, width=6))
    waiting.put(second(1, height=4, width=4))
    assert take_all(waiting)[0].frames.shape == (2, 3, 4, 4)


def test_degrade_spends_less_step_by_step_and_recovers():
    waiting = backlog("degrade", num_frames=8, max_lag_s=9)
    for start_s in range(4):
        waiting.put(second(start_s, num_frames=8))
    late = [waiting.take() for _ in range(3)]
    assert [s.detail for s in late] == list(DETAILS[1:])
    assert [len(s.frames) for s in late] == [4, 2, 2]
    calm = []
    for start_s in range(4, 14):
        calm.append(waiting.take())
        waiting.put(second(start_s, num_frames=8))
    assert [s.detail for s in calm] == sorted(s.detail for s in calm)
    assert calm[-1].detail == 1 and len(calm[-1].frames) == 8
    assert not any(s.dropped_s for s in late + calm)


def test_degrade_drops_beyond_its_lag():
    waiting = backlog("degrade", max_lag_s=2)
    for start_s in range(10):
        waiting.put(second(start_s))
    first = waiting.take()
    assert (first.start_s, first.dropped_s) == (7, 7.0)


def simulate(policy, *, turn_s, duration_s=600, **settings):
    """A stream of one second a second, a model that takes `turn_s(detail)`: the age of each answer, and the turns."""
    waiting, now_s, produced = backlog(policy, **settings), 0.0, 0
    turns, ages_s, most_frames = [], [], 0
    while now_s < duration_s:
        now_s = max(now_s, produced + 1.0) if not waiting.num_frames else now_s
        while produced + 1 <= now_s:
            waiting.put(second(float(produced)))
            produced += 1
            most_frames = max(most_frames, waiting.num_frames)
        turn = waiting.take()
        now_s += turn_s(turn.detail)
        turns.append(turn)
        ages_s.append(now_s - turn.captured_s)
    return turns, ages_s, most_frames


@pytest.mark.parametrize(
    ("policy", "most_s"), [("drop", 2 + 1.5), ("coalesce", 2 + 1.5), ("degrade", 2 + 1.5 + 3)], ids=POLICIES[1:]
)
def test_at_half_of_real_time_the_lag_stays_bounded(policy, most_s):
    turns, ages_s, most_frames = simulate(policy, turn_s=lambda detail: 2.0, max_lag_s=3.0)
    assert max(ages_s) <= most_s
    assert max(ages_s[-100:]) <= max(ages_s[:100]) + 1e-6
    assert most_frames <= 12
    seen_s = sum(t.end_s - t.start_s + t.dropped_s for t in turns)
    assert seen_s == pytest.approx(turns[-1].end_s)  # each second was seen or counted


def test_a_model_that_is_faster_with_less_detail_catches_up_without_dropping():
    turns, ages_s, _ = simulate("degrade", turn_s=lambda detail: 2.0 * detail)
    assert sum(t.dropped_s for t in turns) == 0
    assert max(ages_s) < 4
    assert {t.detail for t in turns[20:]} <= {1.0, 0.5, 0.25}


def test_a_model_in_time_sees_every_second_as_it_is():
    for policy in POLICIES:
        turns, ages_s, _ = simulate(policy, turn_s=lambda detail: 0.9)
        assert spans(turns) == [(i, i + 1) for i in range(len(turns))]
        assert {(t.dropped_s, t.coalesced_s, t.detail) for t in turns} == {(0.0, 0.0, 1.0)}
        assert max(ages_s) < 1.5


@given(
    policy=st.sampled_from(POLICIES[1:]),
    starts=st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=40),
    max_frames=st.integers(2, 12),
    max_kilobytes=st.integers(1, 8),
)
def test_what_waits_is_bounded_in_frames_and_bytes_and_every_second_is_accounted_for(
    policy, starts, max_frames, max_kilobytes
):
    waiting = backlog(policy, max_frames=max_frames, max_bytes=max_kilobytes * 1000, max_lag_s=100)
    for start_s in sorted(starts):
        waiting.put(second(float(start_s), height=8, width=8))
        assert waiting.num_frames <= max_frames
        assert waiting.num_bytes <= max_kilobytes * 1000
    turns = take_all(waiting)
    assert sum(t.end_s - t.start_s + t.dropped_s for t in turns) == len(starts)
    assert turns[-1].end_s == max(starts) + 1


def test_under_wait_the_source_is_held_back():
    waiting = backlog("wait", max_frames=4)
    done = threading.Event()

    def put_all():
        for start_s in range(6):
            waiting.put(second(start_s))
            assert waiting.num_frames <= 4
        done.set()

    thread = threading.Thread(target=put_all)
    thread.start()
    assert not done.wait(0.1)
    assert [waiting.take().start_s for _ in range(6)] == list(range(6))
    thread.join(10)
    assert done.is_set()


def test_clearing_wakes_who_waits_on_either_side():
    for policy, call in (("wait", lambda w: w.put(second(1))), ("drop", lambda w: w.take())):
        waiting = backlog(policy, max_frames=2)
        if policy == "wait":
            waiting.put(second(0))
        thread = threading.Thread(target=call, args=(waiting,))
        thread.start()
        waiting.clear()
        thread.join(10)
        assert not thread.is_alive()
        assert waiting.take() is None


def test_an_error_comes_after_what_was_received_before_it():
    waiting = backlog("coalesce")
    waiting.put(second(0))
    waiting.end(VideoError("the camera is gone"))
    assert waiting.take().start_s == 0
    for _ in range(2):
        with pytest.raises(VideoError, match="gone"):
            waiting.take()


def test_a_second_that_never_fits_is_an_error_that_names_the_options():
    with pytest.raises(VideoError, match=r"live\.max_frames"):
        backlog("drop", max_frames=1).put(second(0))
    with pytest.raises(VideoError, match=r"live\.max_bytes"):
        backlog("wait", max_bytes=10).put(replace(second(0)))


def test_thinning_keeps_the_newest():
    frames = torch.arange(7).reshape(7, 1, 1, 1)
    for num_frames in range(1, 9):
        left = thinned(frames, num_frames).flatten().tolist()
        assert len(left) == min(7, num_frames)
        assert left[-1] == 6 and left == sorted(set(left))
