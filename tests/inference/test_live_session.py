"""A session on what is live: how old its answers are, what a late model does, and the model's clock over a gap."""

import json
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from streamingvlm import LiveConfig, PushedFrames, StreamingSession
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.writers import JsonlWriter
from streamingvlm.provenance import Provenance
from streamingvlm.turns import Turn, TurnFormat
from streamingvlm.video.video_turn import VideoTurn

VIDEO = {"min_pixels": 28 * 28, "max_pixels": 56 * 84, "fps": 4.0, "turn_s": 0.5}
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 8}


@pytest.fixture
def session(model):
    return StreamingSession(model, video=VIDEO, sampling=GREEDY)


class Camera:
    """Pushes a frame at 20 a second that carries the moment of its capture: a share of a minute in three bytes."""

    def __init__(self):
        self.frames = PushedFrames()
        self.began_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._push)
        self._thread.start()

    def _push(self):
        while not self._stop.wait(0.05):
            captured_s = time.monotonic()
            milliseconds = int((captured_s - self.began_s) * 1000)
            frame = torch.zeros(3, 56, 84, dtype=torch.uint8)
            frame[:] = torch.tensor([milliseconds >> 16, milliseconds >> 8 & 255, milliseconds & 255])[:, None, None]
            if time.monotonic() - captured_s < 0.02:  # else this thread was held up, and the frame is old already
                self.frames.push(frame)

    def captured_s(self, frame):
        """When this frame was captured, as it says itself."""
        high, middle, low = frame[:, 0, 0].tolist()
        return self.began_s + (high << 16 | middle << 8 | low) / 1000

    def close(self):
        self._stop.set()
        self._thread.join()
        self.frames.close()


@pytest.fixture
def camera():
    camera = Camera()
    yield camera
    camera.close()


def watch_slowly(session, camera, live, *, turn_s, watch_s):
    """Lines of a model that takes so long for a turn, each with the true age of its newest frame; and the seconds.

    The true age is that at the moment at which the line was finished, as the line tells; a machine that has other work
    may take its time between that moment and any other at which a test could look at the clock.
    """
    step, seen = session.step, []

    def slow_step(second):
        seen.append(second)
        time.sleep(turn_s)
        line = step(second)
        finished_s = second.captured_s + line.age_s
        assert 0 <= time.monotonic() - finished_s < line.latency_s + 5
        return line, finished_s - camera.captured_s(second.frames[-1])

    session.step = slow_step
    until_s = time.monotonic() + watch_s
    watched = []
    for line, true_age_s in session.stream(camera.frames, live=live):
        watched.append((line, true_age_s))
        if time.monotonic() > until_s:
            break
    return watched, seen


@pytest.mark.parametrize("policy", ["drop", "coalesce", "degrade"])
def test_a_model_at_half_of_real_time_stays_near_and_tells_how_old_its_words_are(policy, session, camera):
    live = {"policy": policy, "max_lag_s": 1.0}
    watched, seen = watch_slowly(session, camera, live, turn_s=1.0, watch_s=5)
    lines = [line for line, _ in watched]
    wrong_s = max(abs(line.age_s - age_s) for line, age_s in watched)
    print(f"{policy}: oldest {max(line.age_s for line in lines):.2f} s, ages wrong by {wrong_s:.3f} s; {session.stats}")
    assert wrong_s < 0.1
    assert max(line.age_s for line in lines) < 5
    stats = session.stats
    assert stats.dropped_s == sum(line.dropped_s for line in lines)
    assert stats.coalesced_s == sum(line.coalesced_s for line in lines)
    if policy == "coalesce":
        assert stats.coalesced_s > 0 and stats.dropped_s == 0
        assert [b.start_s - a.end_s for a, b in pairwise(lines)] == pytest.approx([0] * (len(lines) - 1))
        assert {len(second.frames) for second in seen} == {2}
    else:
        assert stats.dropped_s > 0 and stats.coalesced_s == 0
        assert {line.end_s - line.start_s for line in lines} == {0.5}
    assert (min(line.detail for line in lines) < 1) == (policy == "degrade")
    assert f"{stats.dropped_s:.0f} s dropped, {stats.coalesced_s:.0f} s coalesced" in str(stats)


def test_a_model_in_time_drops_nothing(session, camera):
    watched, _ = watch_slowly(session, camera, {"policy": "drop"}, turn_s=0.0, watch_s=2)
    assert sum(line.dropped_s for line, _ in watched[1:]) == 0
    assert len(watched) >= 4


def test_a_file_has_no_age(session):
    line = session.step(torch.zeros(2, 3, 56, 84, dtype=torch.uint8))
    assert (line.age_s, line.dropped_s, line.coalesced_s, line.detail) == (None, 0, 0, 1)
    assert "dropped" not in str(session.stats)


def second(start_s, end_s, **facts):
    generator = torch.Generator().manual_seed(int(start_s))
    frames = torch.randint(0, 256, (2, 3, 112, 168), generator=generator, dtype=torch.uint8)
    return VideoTurn(int(start_s), start_s, end_s, frames, **facts)


def test_a_gap_is_told_to_the_models_clock(model):
    session = StreamingSession(model, video={**VIDEO, "turn_s": 1.0, "fps": 2.0}, sampling=GREEDY)
    for start_s in (0.0, 1.0, 30.0, 4000.0):
        session.step(second(start_s, start_s + 1))
    assert "Time=4000.0-4001.0s" in session.format.decode(session.inspect().ids)
    assert "Time=30.0-31.0s" not in session.format.decode(session.inspect().ids)  # long out of the window


def test_a_turn_over_many_seconds_is_labelled_with_all_of_them(model):
    session = StreamingSession(model, video={**VIDEO, "turn_s": 1.0, "fps": 2.0}, sampling=GREEDY)
    session.step(second(0.0, 1.0))
    line = session.step(second(1.0, 6.0, coalesced_s=4.0))
    assert (line.start_s, line.end_s, line.coalesced_s) == (1.0, 6.0, 4.0)
    assert "Time=1.0-6.0s" in session.format.decode(session.inspect().ids)


def test_less_detail_costs_fewer_tokens_of_vision_and_of_words(model):
    video = {**VIDEO, "min_pixels": 56 * 84, "max_pixels": 112 * 168}
    session = StreamingSession(model, video=video, sampling=GREEDY)
    tokens, said = [], []
    for index, detail in enumerate((1.0, 0.5, 0.25, 0.125, 0.001)):
        line = session.step(second(index, index + 1.0, detail=detail))
        tokens.append(vision_tokens(session, index))
        said.append(line.num_tokens)
    assert tokens[0] == 24
    assert all(spent <= 24 * share for spent, share in zip(tokens[1:4], (0.5, 0.25, 0.125), strict=True))
    assert tokens == sorted(set(tokens), reverse=True) and tokens[-1] == 1
    assert all(spoken <= most for spoken, most in zip(said, (8, 4, 2, 1, 1), strict=True))


def vision_tokens(session, turn):
    return sum(s.num_tokens for s in session.layout.segments if s.turn == turn and s.kind.name == "VISION")


@pytest.mark.parametrize("num_patches", [1, 2])
def test_the_patches_of_a_coalesced_turn_are_labelled_when_their_frames_were(model, num_patches):
    form = TurnFormat(model.tokenizer, temporal_step=1.0, name="patch-seconds-1")
    turn = replace(turn_of(10.0, 14.0), grid=(num_patches, 1, 1))
    labels = [label for label, _ in form._span_each_patch(turn)]
    # 8 frames at 2 a second, of which the last of each half, or quarter, is shown: 11.5 and 13.5 s, or 10.5, 11.5, ...
    assert labels == {1: ["<12.5 seconds>"], 2: ["<11.0 seconds>", "<13.0 seconds>"]}[num_patches]
    whole = replace(turn_of(10.0, 11.0), grid=(1, 1, 1))
    assert [label for label, _ in form._span_each_patch(whole)] == ["<10.2 seconds>"]


def turn_of(start_s, end_s):
    return Turn(3, start_s, end_s, (1, 1, 1))


def test_what_was_late_is_written_with_each_line(tmp_path):
    line = Commentary(3.0, 6.0, "goal", 2, 0.5, age_s=1.25, dropped_s=4.0, coalesced_s=2.0, detail=0.5)
    writer = JsonlWriter(tmp_path / "a.jsonl")
    writer.write(line, Provenance("pitch", "webcam"))
    writer.close()
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    assert (row["age_s"], row["dropped_s"], row["coalesced_s"], row["detail"]) == (1.25, 4.0, 2.0, 0.5)
    assert Commentary(**row) == line


def test_settings_of_the_live_source_are_checked_and_named(session):
    with pytest.raises(ConfigError, match=r"live\.policy"):
        next(session.stream("webcam", live={"policy": "hurry"}))
    with pytest.raises(ConfigError, match=r"live\.speed is unknown"):
        next(session.stream("webcam", live={"speed": 1}))
    assert LiveConfig().policy is None
