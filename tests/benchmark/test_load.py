"""The highest load of a small model: trials, out of memory, streams that open and close."""

import pytest

from streamingvlm.benchmark import load
from streamingvlm.benchmark.batching import measure_batching
from streamingvlm.benchmark.load import LoadGenerator, Trial, max_frames_per_s, max_streams, search_load
from streamingvlm.benchmark.mode_summary import percentiles
from streamingvlm.benchmark.modes import StreamSettings
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import EngineFull
from streamingvlm.inference.engine import Engine
from streamingvlm.model.loading import load_model

SETTINGS = StreamSettings(
    # turns of 0.1 s, so that the tests do not wait for the clock
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


def test_a_search_returns_its_trials_and_whether_it_reached_its_limit():
    found = search_load(lambda n: Trial(n, (0.1,) * n, n <= 5, "" if n <= 5 else "spent"), step=1, limit=16)
    assert found["highest"] == 5 and not found["is_limit_of_search"]
    assert [trial["load"] for trial in found["trials"]] == [1, 2, 4, 8, 6, 5]
    assert found["trials"][3] == {"load": 8, "passed": False, "stop_reason": "spent", "turn": percentiles((0.1,) * 8)}
    assert search_load(lambda n: Trial(n, (), True), step=2, limit=6)["is_limit_of_search"]


@pytest.mark.parametrize("window", ["tokens", "seconds"])
def test_the_window_has_constant_tokens_or_seconds_at_every_rate(model, monkeypatch, window):
    windows = {}

    def turn_times(_model, cache, video, _settings, _trial_s):
        windows[video.fps] = cache.vision_window_s
        return [0.01 if video.fps <= 40 else 1.0]

    monkeypatch.setattr(load, "_stream_back_to_back", turn_times)
    cache = {**SMALL, "vision_window_s": 8.0}
    found = max_frames_per_s(model, cache, SETTINGS, search_limit=160, trial_s=1.0, window=window)
    assert found["highest"] == 40 and found["window"] == window
    assert windows[40.0] == (4.0 if window == "tokens" else 8.0)


def test_a_rate_is_tried_once_the_window_is_full(model):
    trials = []
    found = max_frames_per_s(model, SMALL, SETTINGS, search_limit=20, trial_s=0.5, on_trial=trials.append)
    assert [trial.load for trial in trials] == [20]
    assert [trial.load for trial in trials] == [trial["load"] for trial in found["trials"]]
    assert all(trial["turn"]["n"] >= 1 for trial in found["trials"])


def test_streams_are_added_until_they_are_too_slow(model):
    found = max_streams(model, SMALL, SETTINGS, search_limit=3, trial_s=0.3, p95_s=60.0)
    assert found["highest"] == 3 and found["is_limit_of_search"]
    assert [trial["turn"]["n"] for trial in found["trials"]] == [3, 6, 9]
    assert max_streams(model, SMALL, SETTINGS, search_limit=3, trial_s=0.3, p95_s=1e-9)["highest"] == 0


def test_a_full_engine_fails_the_trial(model, monkeypatch):
    add_stream = Engine.add_stream

    def add_two(engine, *args, **settings):
        if engine.num_streams == 2:
            raise EngineFull("the engine has room for 0 more tokens")
        return add_stream(engine, *args, **settings)

    monkeypatch.setattr(Engine, "add_stream", add_two)
    found = max_streams(model, SMALL, SETTINGS, search_limit=8, trial_s=0.2, p95_s=60.0)
    assert found["highest"] == 2
    assert {trial["stop_reason"] for trial in found["trials"] if not trial["passed"]} == {
        "the engine has room for 0 more tokens"
    }


def test_the_load_generator_opens_and_closes_streams(model):
    with Engine(model, num_slots=4) as engine:
        generator = LoadGenerator(engine, CacheConfig(**SMALL), SETTINGS)
        for number in (3, 1, 2, 0):
            generator.resize(number)
            assert engine.num_streams == number
        assert len(generator.run(2, 0.3, give_up_s=60.0)) == 6


def test_a_bug_in_a_turn_is_raised(model, monkeypatch):
    monkeypatch.setattr("streamingvlm.inference.requests.GenerateTurn.append", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        max_streams(model, SMALL, SETTINGS, search_limit=1, trial_s=0.2, p95_s=60.0)


def test_both_sides_of_batching_do_the_same_turns(model):
    case = measure_batching(model, SMALL, SETTINGS, num_streams=2, num_turns=2, num_repeats=3)
    assert len(case["ratios"]) == len(case["sequential_s"]) == len(case["batched_s"]) == 3
    assert case["ratios"][0] == pytest.approx(case["sequential_s"][0] / case["batched_s"][0], rel=1e-2)
