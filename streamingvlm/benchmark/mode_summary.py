"""Summarize the measured turns of a mode as plain values that JSON can hold."""

from collections.abc import Iterable, Sequence
from typing import Any

from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.timed_turn import TurnMetrics
from streamingvlm.inference.stats import percentile

STAGES = ("video", "vision", "evict", "prefill", "decode")
_SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_MINUTE_S = 60.0


def summarize_mode(run: ModeRun) -> dict[str, Any]:
    """Return the summary of a mode; times in seconds.

    turn: latency from the frames to the last token of the reply. inter_token: time from one token to the next. token:
    turn latency divided by generated tokens, as in the paper. Each stage has an entry as well.
    """
    if not run.turns:
        return {"stop_reason": run.stop_reason}
    first = [turn for turn in run.turns if turn.start_s < _MINUTE_S]
    last = last_minute(run.turns)
    return {
        "stop_reason": run.stop_reason,
        "num_turns": len(run.turns),
        "num_tokens": sum(turn.num_tokens for turn in run.turns),
        "cache_tokens": run.turns[-1].num_context_tokens,
        "prefilled_tokens": percentile([turn.num_prefill_tokens for turn in run.turns], 0.5),
        "cuda_peak_mb": six_digits(run.cuda_peak_mb),
        "resident_peak_mb": six_digits(max(turn.resident_mb for turn in run.turns)),
        "whole": _latencies(run.turns) | _stages(run.synchronized),
        "first_minute": _latencies(first) | _stages(_intersection(first, run.synchronized)),
        "last_minute": _latencies(last) | _stages(_intersection(last, run.synchronized)),
        "token_s_by_turn": [six_digits(turn.token_s) for turn in run.turns],
    }


def last_minute(turns: Sequence[TurnMetrics]) -> list[TurnMetrics]:
    """Return the turns of the last minute of the stream."""
    return [turn for turn in turns if turn.start_s > turns[-1].start_s - _MINUTE_S]


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return p50, p95 and p99 of the values, and their count ``n``."""
    values = list(values)
    return {name: six_digits(percentile(values, share)) for name, share in _SHARES.items()} | {"n": len(values)}


def _latencies(turns: Sequence[TurnMetrics]) -> dict[str, Any]:
    return {
        "turn": percentiles(turn.latency_s for turn in turns),
        "token": percentiles(turn.token_s for turn in turns if turn.num_tokens),
        "inter_token": percentiles(inter_token_s for turn in turns for inter_token_s in turn.inter_token_s),
    }


def _stages(turns: Sequence[TurnMetrics]) -> dict[str, Any]:
    return {name: percentiles(turn.stages[name] for turn in turns if name in turn.stages) for name in STAGES if turns}


def _intersection(turns: Sequence[TurnMetrics], others: Sequence[TurnMetrics]) -> list[TurnMetrics]:
    """Return the turns that are also in ``others``, compared by identity."""
    known = {id(turn) for turn in others}
    return [turn for turn in turns if id(turn) in known]


def six_digits(value: float | None) -> float | None:
    """Round to six significant digits; the rest is measurement noise."""
    return None if value is None else float(f"{value:.6g}")
