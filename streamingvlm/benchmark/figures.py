"""From what was measured of each turn to the figures of a record, as plain values that JSON can hold."""

from collections.abc import Iterable, Sequence
from typing import Any

from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.timed_turn import TurnFigures
from streamingvlm.inference.stats import percentile

STAGES = ("video", "vision", "evict", "prefill", "decode")
_SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_MINUTE_S = 60.0


def mode_figures(run: ModeRun) -> dict[str, Any]:
    """The figures of a mode; times in seconds.

    turn: a second of stream from its frames to the last word; between_tokens: from one token to the next; token: all
    work of a turn over its tokens, as the paper counts it; and each stage.
    """
    if not run.turns:
        return {"ended": run.ended}
    first = [turn for turn in run.turns if turn.start_s < _MINUTE_S]
    last = last_minute(run.turns)
    return {
        "ended": run.ended,
        "num_turns": len(run.turns),
        "num_tokens": sum(turn.num_tokens for turn in run.turns),
        "cache_tokens": run.turns[-1].num_seen,
        "prefilled_tokens": percentile([turn.num_fed for turn in run.turns], 0.5),
        "cuda_peak_mb": rounded(run.cuda_peak_mb),
        "resident_peak_mb": rounded(max(turn.resident_mb for turn in run.turns)),
        "whole": _times(run.turns) | _stages(run.synchronised),
        "first_minute": _times(first) | _stages(_those_of(first, run.synchronised)),
        "last_minute": _times(last) | _stages(_those_of(last, run.synchronised)),
        "token_s_by_turn": [rounded(turn.token_s) for turn in run.turns],
    }


def last_minute(turns: Sequence[TurnFigures]) -> list[TurnFigures]:
    """The turns of the last minute of stream."""
    return [turn for turn in turns if turn.start_s > turns[-1].start_s - _MINUTE_S]


def spread(values: Iterable[float]) -> dict[str, float]:
    """The percentiles of some values, and how many there are."""
    values = list(values)
    return {name: rounded(percentile(values, share)) for name, share in _SHARES.items()} | {"n": len(values)}


def _times(turns: Sequence[TurnFigures]) -> dict[str, Any]:
    return {
        "turn": spread(turn.latency_s for turn in turns),
        "token": spread(turn.token_s for turn in turns if turn.num_tokens),
        "between_tokens": spread(between_s for turn in turns for between_s in turn.between_tokens_s),
    }


def _stages(turns: Sequence[TurnFigures]) -> dict[str, Any]:
    return {name: spread(turn.stages[name] for turn in turns if name in turn.stages) for name in STAGES if turns}


def _those_of(part: Sequence[TurnFigures], synchronised: Sequence[TurnFigures]) -> list[TurnFigures]:
    """The turns of a part whose stages are known."""
    known = {id(turn) for turn in synchronised}
    return [turn for turn in part if id(turn) in known]


def rounded(value: float | None) -> float | None:
    """Six digits of a figure: what lies below them is noise."""
    return None if value is None else float(f"{value:.6g}")
