"""The record of one streamed match, second by second; scores, tables, figures and reports are computed from it.

On disk a run is a JSONL file, written atomically: its settings first, then a line per second.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import Any

from streamingvlm.atomic import write_text
from streamingvlm.errors import DataError
from streamingvlm.evaluation.report.stream_report import CacheFill
from streamingvlm.inference.stats import percentile
from streamingvlm.pitch import PitchReport, score, score_parts
from streamingvlm.pitch.styles import STYLES, Style

_FORMAT = "pitch-run-1"
_SETTLED_S = 300
_MINUTES_COMPARED = 10


@dataclass(frozen=True, slots=True)
class RunSecond:
    """One second of a run.

    truth, said: lines, "" for silence; said is None after the stream ended.
    fault: 0 if side, club and score of the true line are right, 0.5 if only the event is right, 1 for another event.
    num_tokens: generated tokens; latency_s: seconds of work; resident_mb: memory of the process.
    """

    start_s: float
    truth: str
    said: str | None
    fault: float = 1.0
    num_tokens: int = 0
    latency_s: float = 0.0
    resident_mb: float = 0.0
    fill: CacheFill = field(default_factory=CacheFill)


@dataclass(frozen=True)
class PitchRun:
    """One match, streamed by one model under one policy.

    name: the row of a table, "" for a single stream; settings: of model, cache, video and sampling.
    stopped: why the stream ended early, "" if it did not. Seconds after that are scored as silence.
    commit: of the code.
    """

    seed: int
    style: str
    seconds: tuple[RunSecond, ...]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    commit: str | None = None

    @property
    def watched(self) -> tuple[RunSecond, ...]:
        """The seconds until the stream ended; all of them unless it ended early."""
        return tuple(second for second in self.seconds if second.said is not None)

    @cached_property
    def report(self) -> PitchReport:
        """The score of the whole stream."""
        return score(*self._lines, self._style)

    @cached_property
    def thirds(self) -> tuple[PitchReport, ...]:
        """The scores of the first, the middle and the last third."""
        return self.parts(3)

    @cached_property
    def fifths(self) -> tuple[PitchReport, ...]:
        """The scores of the five fifths, as in the paper."""
        return self.parts(5)

    def parts(self, num_parts: int) -> tuple[PitchReport, ...]:
        """Score ``num_parts`` parts of equal length."""
        return score_parts(*self._lines, self._style, num_parts)

    @property
    def _style(self) -> Style:
        return STYLES[self.style]

    @property
    def _lines(self) -> tuple[list[str], list[str]]:
        return [second.truth for second in self.seconds], [second.said or "" for second in self.seconds]

    @property
    def right_share(self) -> float:
        """The share of seconds with an event whose line has event, side, club and score right."""
        return right_share(self.seconds)

    @property
    def latencies_s(self) -> list[float]:
        """Seconds of work on each second until the stream ended."""
        return [second.latency_s for second in self.watched]

    @property
    def realtime_factor(self) -> float:
        """Seconds of stream per second of work."""
        return _ratio(len(self.watched), sum(self.latencies_s))

    @property
    def token_s(self) -> float:
        """Seconds of work per generated token, prefill and vision included, as in the paper."""
        return _ratio(sum(self.latencies_s), sum(second.num_tokens for second in self.watched))

    @property
    def max_cache_tokens(self) -> int:
        """The most tokens in the cache after any second."""
        return max((second.fill.num_tokens for second in self.watched), default=0)

    @property
    def settled_mb(self) -> float:
        """Resident memory of the process after five minutes of stream, or at its end if that is earlier."""
        return self.watched[:_SETTLED_S][-1].resident_mb

    @property
    def final_mb(self) -> float:
        """Resident memory of the process at the end."""
        return self.watched[-1].resident_mb

    @property
    def first_p95_s(self) -> float:
        """The 95th percentile of latency in the first ten minutes."""
        return percentile(self.latencies_s[: _MINUTES_COMPARED * 60], 0.95)

    @property
    def last_p95_s(self) -> float:
        """The 95th percentile of latency in the last ten minutes."""
        return percentile(self.latencies_s[-_MINUTES_COMPARED * 60 :], 0.95)

    def summary(self) -> dict[str, Any]:
        """Return all figures of the run, without its seconds, as JSON."""
        report, *parts = (_plain(report) for report in (self.report, *self.thirds, *self.fifths))
        names = ("right_share", "token_s", "realtime_factor", "settled_mb", "final_mb", "first_p95_s", "last_p95_s")
        figures = {name: none_if_nan(getattr(self, name)) for name in (*names, "max_cache_tokens")}
        return {
            "seed": self.seed,
            "stopped": self.stopped,
            "watched_s": len(self.watched),
            "report": report,
            "thirds": parts[:3],
            "fifths": parts[3:],
            **figures,
            "settings": self.settings,
            "commit": self.commit,
        }

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.report}; {self.right_share:.3f} of the lines right (event, side, club, score)",
            *(
                f"macro-F1 by {name}: {_by_part(parts)}"
                for name, parts in (("thirds", self.thirds), ("fifths", self.fifths))
            ),
            f"{self.realtime_factor:.1f}x real time, {self.token_s * 1e3:.0f} ms per token; p95 of a second "
            f"{self.first_p95_s * 1e3:.0f} ms in the first {_MINUTES_COMPARED} minutes, {self.last_p95_s * 1e3:.0f} ms "
            "in the last",
            f"resident memory {self.settled_mb:.1f} MB after 5 minutes, {self.final_mb:.1f} MB at the end; at most "
            f"{self.max_cache_tokens} tokens in the cache",
        ]
        return "\n".join(lines + ([f"ended early: {self.stopped}"] if self.stopped else []))


def none_if_nan(value: Any) -> Any:
    """Return the value, None for NaN, which JSON lacks."""
    return None if isinstance(value, float) and isnan(value) else value


def fault_of(truth: str, said: str, style: Style) -> float:
    """Return the fault of a line: 0 if side, club and score are right, 0.5 if only the event is right, 1 otherwise."""
    true, called = style.parse_line(truth), style.parse_line(said)
    if true.kind != called.kind:
        return 1.0
    details = [(getattr(true, name), getattr(called, name)) for name in ("colour", "club", "score")]
    return 0.0 if all(true is None or true == called for true, called in details) else 0.5


def right_share(seconds: Sequence[RunSecond]) -> float:
    """Return the share of seconds with an event whose line has no fault, NaN without any event."""
    eventful = [second for second in seconds if second.truth]
    return _ratio(sum(second.fault == 0 for second in eventful), len(eventful))


def write_run(path: Path, run: PitchRun):
    """Write the record of a run. Raises OSError."""
    head = {"format": _FORMAT} | {name: getattr(run, name) for name in _HEAD}
    rows = (asdict(second) for second in run.seconds)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *rows)))


def read_run(path: Path) -> PitchRun:
    """Read a record that ``write_run`` wrote. Raises DataError for a file that is not one."""
    try:
        with path.open(encoding="utf-8") as file:
            head, *rows = (json.loads(line) for line in file)
        if head.pop("format") != _FORMAT:
            raise ValueError("another format")
        seconds = tuple(RunSecond(**{**row, "fill": CacheFill(**row["fill"])}) for row in rows)
        return PitchRun(seconds=seconds, **head)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no record of a run ({error}); delete it and run the command again") from error


_HEAD = ("name", "seed", "style", "settings", "stopped", "commit")


def _by_part(parts: Sequence[PitchReport]) -> str:
    by_part = ", ".join(f"{part.macro_f1:.3f}" for part in parts)
    return f"{by_part}; last over first {_ratio(parts[-1].macro_f1, parts[0].macro_f1):.3f}"


def _plain(report: PitchReport) -> dict[str, Any]:
    """Return a report as JSON: strings as keys instead of tuples, null for values that could not be judged."""
    confusion = {f"{true} as {called}": count for (true, called), count in report.confusion.items()}
    return {name: none_if_nan(value) for name, value in asdict(report).items()} | {"confusion": confusion}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
