"""Measured streams: the stages of each turn, and the reason if a stream stops early."""

import pytest
import torch

from streamingvlm.benchmark.mode_summary import STAGES, summarize_mode
from streamingvlm.benchmark.modes import StreamSettings, measure_mode
from streamingvlm.config import SamplingConfig, VideoConfig
from streamingvlm.errors import ConfigError, EngineFull
from streamingvlm.inference.limits import StreamLimits, is_out_of_memory
from streamingvlm.model.loading import load_model

SETTINGS = StreamSettings(
    video=VideoConfig(fps=2.0, min_pixels=1, max_pixels=84 * 84),
    sampling=SamplingConfig(temperature=0, max_new_tokens=4),
    source="noise",
    height=56,
    width=84,
)
SMALL = {"text_sink_tokens": 8, "text_window_tokens": 8, "vision_window_s": 3.0, "turn_window_s": 3.0}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint(), device="cpu")


def test_a_turn_has_all_its_stages_and_token_counts(model):
    run = measure_mode(model, SMALL, SETTINGS, duration_s=6)
    assert [turn.start_s for turn in run.turns] == [0, 1, 2, 3, 4, 5]
    assert (run.stop_reason, run.cuda_peak_mb, run.synchronized) == ("", None, run.turns)
    for turn in run.turns:
        assert set(STAGES) <= set(turn.stages)
        inside = sum(seconds for name, seconds in turn.stages.items() if name not in ("video", "turn"))
        assert inside <= turn.latency_s and turn.num_tokens <= 4
        assert len(turn.inter_token_s) == turn.num_tokens - 1
        assert 0 < turn.num_prefill_tokens <= turn.num_context_tokens
    # cached tokens are not prefilled again
    assert run.turns[-1].num_prefill_tokens < run.turns[-1].num_context_tokens


def test_recompute_prefills_the_whole_context(model):
    run = measure_mode(model, {**SMALL, "recompute": True}, SETTINGS, duration_s=4)
    assert all(turn.num_prefill_tokens == turn.num_context_tokens for turn in run.turns)


def test_the_summary_has_the_first_and_the_last_minute(model):
    summary = summarize_mode(measure_mode(model, SMALL, SETTINGS, duration_s=64))
    assert summary["num_turns"] == len(summary["token_s_by_turn"]) == 64
    assert [summary[part]["turn"]["n"] for part in ("whole", "first_minute", "last_minute")] == [64, 60, 60]
    for part in ("whole", "first_minute", "last_minute"):
        assert summary[part]["turn"]["p50"] <= summary[part]["turn"]["p95"] <= summary[part]["turn"]["p99"]


def test_a_limit_ends_a_mode_with_its_reason(model):
    run = measure_mode(model, {"policy": "full"}, SETTINGS, duration_s=50, limits=StreamLimits(busy_s=0.0))
    assert len(run.turns) == 1 and run.stop_reason.startswith("the work took")


def test_out_of_memory_stops_a_mode_with_the_turns_measured_so_far(model, monkeypatch):
    from streamingvlm.benchmark import modes

    measure = modes.measure_turn

    def until_out_of_memory(session, video_turn):
        if video_turn.index == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        return measure(session, video_turn)

    monkeypatch.setattr(modes, "measure_turn", until_out_of_memory)
    run = measure_mode(model, {"policy": "full"}, SETTINGS, duration_s=9)
    # after the warm-up the stream starts again at turn 0
    assert len(run.turns) == 5 and run.turns[0].start_s == 0
    assert run.stop_reason == "out of memory after 5 turns: CUDA out of memory. Tried to allocate 2 GiB"
    assert summarize_mode(run)["stop_reason"] == run.stop_reason


def test_a_mode_without_turns_has_only_a_reason(model, monkeypatch):
    def full(*_, **__):
        raise EngineFull("no room for a stream")

    monkeypatch.setattr("streamingvlm.benchmark.modes.StreamingSession", full)
    assert summarize_mode(measure_mode(model, SMALL, SETTINGS, duration_s=1)) == {
        "stop_reason": "out of memory after 0 turns: no room for a stream"
    }


def test_a_bug_is_not_reported_as_out_of_memory(model, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("streamingvlm.benchmark.modes.measure_turn", broken)
    with pytest.raises(RuntimeError, match="shape"):
        measure_mode(model, SMALL, SETTINGS, duration_s=2)
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ConfigError("x"))
