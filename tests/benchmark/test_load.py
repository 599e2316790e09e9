"""The highest load of a small model: trials, memory that is spent, streams that come and go."""

import pytest

from streamingvlm.benchmark import load
from streamingvlm.benchmark.load import Crowd, Trial, measure_batching, most_frames_per_s, most_streams, search
from streamingvlm.benchmark.modes import StreamSettings
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import EngineFull
from streamingvlm.inference.engine import Engine
from streamingvlm.model.loading import load_model

SETTINGS = StreamSettings(
    # turns of a tenth of a second: the tests do not wait for the clock
    video=VideoConfig(fps=20.0, turn_s=0.1, min_pixels=1, max_pixels=84 * 84),
    sampling=SamplingConfig(temperature=0, max_new_tokens=2),
    source="noise",
    height=56,
    width=84,
)
SMALL = {"text_sink_tokens": 8, "text_window_tokens": 8, "vision_window_s": 1.0, "turn_window_s": 1.0}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint(), device="cpu")


def test_a_search_keeps_its_trials_and_says_whether_it_came_to_its_end():
    found = search(lambda n: Trial(n, (0.1,) * n, n <= 5, "" if n <= 5 else "spent"), step=1, most=16)
    assert found["highest"] == 5 and not found["is_limit_of_search"]
    assert [trial["load"] for trial in found["trials"]] == [1, 2, 4, 8, 6, 5]
    assert found["trials"][3] == {"load": 8, "passed": False, "ended": "spent", "turn": load.spread((0.1,) * 8)}
    assert search(lambda n: Trial(n, (), True), step=2, most=6)["is_limit_of_search"]


@pytest.mark.parametrize("window", ["tokens", "seconds"])
def test_the_window_keeps_its_tokens_or_its_seconds_at_every_rate(model, monkeypatch, window):
    windows = {}

    def keep_pace(_model, cache, video, _settings, _trial_s):
        windows[video.fps] = cache.vision_window_s
        return [0.01 if video.fps <= 40 else 1.0]

    monkeypatch.setattr(load, "_keep_pace", keep_pace)
    cache = {**SMALL, "vision_window_s": 8.0}
    found = most_frames_per_s(model, cache, SETTINGS, most=160, trial_s=1.0, window=window)
    assert found["highest"] == 40 and found["window"] == window
    assert windows[40.0] == (4.0 if window == "tokens" else 8.0)


def test_a_rate_is_tried_once_the_window_is_full(model):
    heard = []
    found = most_frames_per_s(model, SMALL, SETTINGS, most=20, trial_s=0.5, on_trial=heard.append)
    assert [trial.load for trial in heard] == [20]
    assert [trial.load for trial in heard] == [trial["load"] for trial in found["trials"]]
    assert all(trial["turn"]["n"] >= 1 for trial in found["trials"])


def test_streams_are_added_until_they_wait_too_long(model):
    found = most_streams(model, SMALL, SETTINGS, most=3, trial_s=0.3, p95_s=60.0)
    assert found["highest"] == 3 and found["is_limit_of_search"]
    assert [trial["turn"]["n"] for trial in found["trials"]] == [3, 6, 9]
    assert most_streams(model, SMALL, SETTINGS, most=3, trial_s=0.3, p95_s=1e-9)["highest"] == 0


def test_an_engine_that_is_full_is_the_end_of_a_search(model, monkeypatch):
    admitted = Engine.admit_

    def admit_two(engine, *args):
        if engine.num_streams == 2:
            raise EngineFull("the engine has room for 0 more tokens")
        return admitted(engine, *args)

    monkeypatch.setattr(Engine, "admit_", admit_two)
    found = most_streams(model, SMALL, SETTINGS, most=8, trial_s=0.2, p95_s=60.0)
    assert found["highest"] == 2
    assert {trial["ended"] for trial in found["trials"] if not trial["passed"]} == {
        "the engine has room for 0 more tokens"
    }


def test_a_crowd_grows_and_shrinks(model):
    with Engine(model, num_slots=4) as engine:
        crowd = Crowd(engine, CacheConfig(**SMALL), SETTINGS)
        for number in (3, 1, 2, 0):
            crowd.resize_(number)
            assert engine.num_streams == number
        assert len(crowd.watch_(2, 0.3, give_up_s=60.0)) == 6


def test_a_bug_in_a_turn_is_raised(model, monkeypatch):
    monkeypatch.setattr("streamingvlm.inference.job.SpokenTurn.take_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        most_streams(model, SMALL, SETTINGS, most=1, trial_s=0.2, p95_s=60.0)


def test_both_sides_of_batching_do_the_same_turns(model):
    case = measure_batching(model, SMALL, SETTINGS, num_streams=2, num_turns=2, num_repeats=3)
    assert len(case["ratios"]) == len(case["in_turn_s"]) == len(case["batched_s"]) == 3
    assert case["ratios"][0] == pytest.approx(case["in_turn_s"][0] / case["batched_s"][0], rel=1e-2)
