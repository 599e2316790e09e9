"""The HTML report of a stream: timeline, cache, latency, and the worst minutes first.

The page is a single file that loads nothing. Its content security policy (CSP) allows only its own script, and all text
is escaped, because commentary is untrusted input.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from streamingvlm.atomic import write_text
from streamingvlm.errors import DataError
from streamingvlm.evaluation.report.charts import Chart, cache_chart, duration, fault_chart, latency_chart, strip
from streamingvlm.evaluation.report.stream_report import ReportTurn, StreamReport, Thumbnail

_MINUTE_S = 60
_NUM_WORST = 6
_THUMBNAIL_PIXELS = 224


@dataclass(frozen=True)
class Minute:
    """A minute of the stream: its turns, the SVG paths of its timeline, and its rank (0 is the worst)."""

    number: int
    turns: Sequence[ReportTurn]
    marks: dict[str, str]
    rank: int

    @property
    def start_s(self) -> float:
        """Stream time of its start."""
        return float(self.number * _MINUTE_S)

    @property
    def clock(self) -> str:
        """Its start, formatted."""
        return clock(self.start_s)

    @property
    def num_faulty(self) -> int:
        """Turns that are not fully right."""
        return sum(bool(turn.fault) for turn in self.turns)

    @property
    def is_judged(self) -> bool:
        """Return True if any of its turns was judged."""
        return any(turn.fault is not None for turn in self.turns)

    @property
    def verdict(self) -> str:
        """A summary in a few words."""
        if not self.is_judged:
            return f"slowest {duration(max(turn.latency_s for turn in self.turns))}"
        num_wrong = sum(turn.fault == 1 for turn in self.turns)
        counts = {"wrong": num_wrong, "partly": self.num_faulty - num_wrong}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "all right"


def write_report(report: StreamReport, path: Path):
    """Write the page of a stream. Raises DataError for a stream without turns, OSError."""
    write_text(path, render_report(report))


def render_report(report: StreamReport) -> str:
    """Return the page of a stream as HTML. Raises DataError for a stream without turns."""
    if not report.turns:
        raise DataError(f"{report.title}: the stream has no turns, and a report needs at least one; stream longer")
    minutes = minutes_of(report.turns, report.turn_s)
    worst = sorted((m for m in minutes if m.num_faulty or not m.is_judged), key=lambda minute: minute.rank)
    script = _environment().loader.get_source(_environment(), "report.js")[0]
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            minutes=minutes,
            worst=worst[:_NUM_WORST],
            thumbnails=[(thumbnail, data_url(thumbnail)) for thumbnail in report.thumbnails],
            by_start={turn.start_s: turn for turn in report.turns},
            has_truth=any(turn.truth is not None for turn in report.turns),
            is_judged=any(minute.is_judged for minute in minutes),
            charts=_charts(report, minutes),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def minutes_of(turns: Sequence[ReportTurn], turn_s: float) -> list[Minute]:
    """Split a stream into minutes, ranked by their faults, or by their slowest turn if nothing was judged."""
    by_number: dict[int, list[ReportTurn]] = {}
    for turn in turns:
        by_number.setdefault(int(turn.start_s // _MINUTE_S), []).append(turn)
    worst_first = sorted(by_number, key=lambda number: (_severity(by_number[number]), -number), reverse=True)
    ranks = {number: rank for rank, number in enumerate(worst_first)}
    return [
        Minute(number, of_minute, strip(of_minute, number * _MINUTE_S, turn_s), ranks[number])
        for number, of_minute in sorted(by_number.items())
    ]


def _severity(turns: Iterable[ReportTurn]) -> tuple[float, float]:
    turns = list(turns)
    return sum(turn.fault or 0.0 for turn in turns), max(turn.latency_s for turn in turns)


def clock(time_s: float) -> str:
    """Format a stream time: 12:05, or 1:12:05 from an hour on."""
    hours, rest = divmod(int(time_s), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def data_url(thumbnail: Thumbnail) -> str:
    """Encode a thumbnail as the data URL of a small JPEG."""
    image = Image.fromarray(thumbnail.picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    file = BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def mark_of(turn: ReportTurn) -> str:
    """Return the verdict on a turn, in a word."""
    if turn.said is None:
        return "not watched"
    if turn.fault is None:
        return ""
    if turn.fault == 0:
        return "right"
    if turn.truth and not turn.said:
        return "missed"
    return "partly" if turn.fault < 1 else "wrong"


def words_of(turn: ReportTurn) -> list[tuple[str, bool]]:
    """Return the words of a turn; True marks the words of a partly right turn that are not in the truth."""
    words = (turn.said or "").split()
    if not turn.truth or not turn.fault or turn.fault >= 1:
        return [(word, False) for word in words]
    true_words = set(turn.truth.split())
    return [(word, word not in true_words) for word in words]


def _charts(report: StreamReport, minutes: Sequence[Minute]) -> dict[str, Chart | None]:
    return {
        "faults": fault_chart([(m.start_s, m.num_faulty, len(m.turns)) for m in minutes if m.is_judged]),
        "cache": cache_chart(report.turns, report.turn_s, report.capacity_tokens),
        "latency": latency_chart(report.turns, report.turn_s),
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("streamingvlm.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clock=clock, duration=duration, mark=mark_of, words=words_of)
    return environment
