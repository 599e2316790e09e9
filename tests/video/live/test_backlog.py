"""The lag policies, with a model of given speed and simulated time: only threads wait here."""

import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import VideoError
from streamingvlm.video.live.backlog import DETAIL_LEVELS, Backlog, subsample
from streamingvlm.video.video_turn import VideoTurn

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


def make_turn(start_s, num_frames=2, height=2, width=2):
    """A turn whose frames hold their capture times, in tenths of a second."""
    times_s = [start_s + k / num_frames for k in range(num_frames)]
    frames = torch.stack([torch.full((3, height, width), round(10 * t) % 256, dtype=torch.uint8) for t in times_s])
    return VideoTurn(int(start_s), start_s, start_s + 1.0, frames, captured_s=times_s[-1])


def spans(turns):
    return [(s.start_s, s.end_s) for s in turns]


def take_all(waiting):
    waiting.end()
    return list(iter(waiting.take, None))


def test_wait_yields_every_turn():
    waiting = backlog("wait")
    for start_s in range(5):
        waiting.put(make_turn(start_s))
    assert spans(take_all(waiting)) == [(i, i + 1) for i in range(5)]


def test_drop_yields_the_newest_and_counts_the_dropped():
    waiting = backlog("drop")
    for start_s in (0, 1, 2, 7, 8):
        waiting.put(make_turn(start_s))
    [newest] = take_all(waiting)
    assert (newest.start_s, newest.dropped_s, newest.coalesced_s) == (8, 4.0, 0.0)


def test_coalesce_merges_the_missed_turns():
    waiting = backlog("coalesce")
    for start_s in range(4):
        waiting.put(make_turn(start_s))
    [turn] = take_all(waiting)
    assert spans([turn]) == [(0, 4)]
    assert (turn.index, turn.coalesced_s, turn.dropped_s, turn.captured_s) == (0, 3.0, 0.0, 3.5)
    assert turn.frames[:, 0, 0, 0].tolist() == [15, 35]  # the newest of each half, so the newest of all


def test_coalesce_does_not_span_a_gap():
    waiting = backlog("coalesce")
    for start_s in (0, 1, 9, 10, 11):
        waiting.put(make_turn(start_s))
    assert spans(take_all(waiting)) == [(0, 2), (9, 12)]


def test_coalesce_over_a_change_of_resolution():
    waiting = backlog("coalesce")
    waiting.put(make_turn(0, height=8, width=6))
    waiting.put(make_turn(1, height=4, width=4))
    assert take_all(waiting)[0].frames.shape == (2, 3, 4, 4)


def test_degrade_goes_down_level_by_level_and_recovers():
    waiting = backlog("degrade", num_frames=8, max_lag_s=9)
    for start_s in range(4):
        waiting.put(make_turn(start_s, num_frames=8))
    late = [waiting.take() for _ in range(3)]
    assert [s.detail for s in late] == list(DETAIL_LEVELS[1:])
    assert [len(s.frames) for s in late] == [4, 2, 2]
    on_time = []
    for start_s in range(4, 14):
        on_time.append(waiting.take())
        waiting.put(make_turn(start_s, num_frames=8))
    assert [s.detail for s in on_time] == sorted(s.detail for s in on_time)
    assert on_time[-1].detail == 1 and len(on_time[-1].frames) == 8
    assert not any(s.dropped_s for s in late + on_time)


def test_degrade_drops_beyond_its_lag():
    waiting = backlog("degrade", max_lag_s=2)
    for start_s in range(10):
        waiting.put(make_turn(start_s))
    first = waiting.take()
    assert (first.start_s, first.dropped_s) == (7, 7.0)


def simulate(policy, *, turn_s, duration_s=600, **settings):
    """Run a stream of one-second turns and a model that takes `turn_s(detail)` for each.

    Returns the turns, the ages of the answers and the most frames that waited.
    """
    waiting, now_s, produced = backlog(policy, **settings), 0.0, 0
    turns, ages_s, max_waiting = [], [], 0
    while now_s < duration_s:
        now_s = max(now_s, produced + 1.0) if not waiting.num_frames else now_s
        while produced + 1 <= now_s:
            waiting.put(make_turn(float(produced)))
            produced += 1
            max_waiting = max(max_waiting, waiting.num_frames)
        turn = waiting.take()
        now_s += turn_s(turn.detail)
        turns.append(turn)
        ages_s.append(now_s - turn.captured_s)
    return turns, ages_s, max_waiting


@pytest.mark.parametrize(
    ("policy", "max_s"), [("drop", 2 + 1.5), ("coalesce", 2 + 1.5), ("degrade", 2 + 1.5 + 3)], ids=POLICIES[1:]
)
def test_at_half_of_real_time_the_lag_stays_bounded(policy, max_s):
    turns, ages_s, max_waiting = simulate(policy, turn_s=lambda detail: 2.0, max_lag_s=3.0)
    assert max(ages_s) <= max_s
    assert max(ages_s[-100:]) <= max(ages_s[:100]) + 1e-6
    assert max_waiting <= 12
    seen_s = sum(t.end_s - t.start_s + t.dropped_s for t in turns)
    assert seen_s == pytest.approx(turns[-1].end_s)  # each turn was taken or counted as dropped


def test_a_model_that_is_faster_with_less_detail_catches_up_without_dropping():
    turns, ages_s, _ = simulate("degrade", turn_s=lambda detail: 2.0 * detail)
    assert sum(t.dropped_s for t in turns) == 0
    assert max(ages_s) < 4
    assert {t.detail for t in turns[20:]} <= {1.0, 0.5, 0.25}


def test_a_model_on_time_gets_every_turn_unchanged():
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
def test_the_backlog_is_bounded_and_every_turn_is_accounted_for(policy, starts, max_frames, max_kilobytes):
    waiting = backlog(policy, max_frames=max_frames, max_bytes=max_kilobytes * 1000, max_lag_s=100)
    for start_s in sorted(starts):
        waiting.put(make_turn(float(start_s), height=8, width=8))
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
            waiting.put(make_turn(start_s))
            assert waiting.num_frames <= 4
        done.set()

    thread = threading.Thread(target=put_all)
    thread.start()
    assert not done.wait(0.1)
    assert [waiting.take().start_s for _ in range(6)] == list(range(6))
    thread.join(10)
    assert done.is_set()


def test_clear_wakes_blocked_puts_and_takes():
    for policy, call in (("wait", lambda w: w.put(make_turn(1))), ("drop", lambda w: w.take())):
        waiting = backlog(policy, max_frames=2)
        if policy == "wait":
            waiting.put(make_turn(0))
        thread = threading.Thread(target=call, args=(waiting,))
        thread.start()
        waiting.clear()
        thread.join(10)
        assert not thread.is_alive()
        assert waiting.take() is None


def test_an_error_is_raised_after_the_turns_before_it():
    waiting = backlog("coalesce")
    waiting.put(make_turn(0))
    waiting.end(VideoError("the camera is gone"))
    assert waiting.take().start_s == 0
    for _ in range(2):
        with pytest.raises(VideoError, match="gone"):
            waiting.take()


def test_a_turn_that_exceeds_the_limits_is_an_error_that_names_the_options():
    with pytest.raises(VideoError, match=r"live\.max_frames"):
        backlog("drop", max_frames=1).put(make_turn(0))
    with pytest.raises(VideoError, match=r"live\.max_bytes"):
        backlog("wait", max_bytes=10).put(replace(make_turn(0)))


def test_subsampling_keeps_the_newest():
    frames = torch.arange(7).reshape(7, 1, 1, 1)
    for num_frames in range(1, 9):
        left = subsample(frames, num_frames).flatten().tolist()
        assert len(left) == min(7, num_frames)
        assert left[-1] == 6 and left == sorted(set(left))


def test_an_error_after_clear_is_discarded():
    waiting = backlog("drop")
    waiting.clear()
    waiting.end(VideoError("the camera is gone"))
    assert waiting.take() is None


def test_counts_may_be_read_while_another_thread_puts_and_takes(frequent_switches):
    waiting = backlog("wait", max_frames=401)
    for start_s in range(200):
        waiting.put(make_turn(start_s))
    stop = threading.Event()

    def replace_turns():
        while not stop.is_set():
            waiting.take()
            waiting.put(make_turn(200))

    thread = threading.Thread(target=replace_turns)
    thread.start()
    try:
        deadline_s = time.monotonic() + 1
        while time.monotonic() < deadline_s:
            assert waiting.num_frames in (398, 400)
            assert waiting.num_bytes in (398 * 12, 400 * 12)
    finally:
        stop.set()
        thread.join(10)


@dataclass(frozen=True, eq=False)
class SlowTurn(VideoTurn):
    """Copying it, as `take` does, gives other threads time to run."""

    def __post_init__(self):
        time.sleep(0.001)


def test_turns_dropped_during_a_take_are_counted():
    waiting = backlog("drop")
    num_put = 300
    turns = [SlowTurn(i, float(i), i + 1.0, make_turn(0).frames) for i in range(num_put)]

    def put_all():
        for turn in turns:
            waiting.put(turn)
            time.sleep(0.0002)
        waiting.end()

    thread = threading.Thread(target=put_all)
    thread.start()
    taken = list(iter(waiting.take, None))
    thread.join(10)
    assert sum(turn.end_s - turn.start_s + turn.dropped_s for turn in taken) == num_put
