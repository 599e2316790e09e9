"""One page a run, to be looked at rather than read: timeline, cache, latency, and the worst minutes first.

The page is one file. It loads nothing, and its policy (CSP) forbids that anything be loaded or run but its own script,
whatever a commentary may hold; all texts are escaped besides.
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
from streamingvlm.evaluation.report.watched import Thumbnail, Watched, WatchedSecond

_MINUTE_S = 60
_NUM_WORST = 6
_THUMBNAIL_PIXELS = 224


@dataclass(frozen=True)
class Minute:
    """A minute of the stream: its turns, its strip of the timeline, and its place among the worst (0: the worst)."""

    number: int
    seconds: Sequence[WatchedSecond]
    marks: dict[str, str]
    rank: int

    @property
    def start_s(self) -> float:
        """Stream time of its beginning."""
        return float(self.number * _MINUTE_S)

    @property
    def clock(self) -> str:
        """Its beginning as people write it."""
        return clock(self.start_s)

    @property
    def num_faulty(self) -> int:
        """Turns that are not wholly right."""
        return sum(bool(second.fault) for second in self.seconds)

    @property
    def is_judged(self) -> bool:
        """Whether there is anything to be right or wrong about."""
        return any(second.fault is not None for second in self.seconds)

    @property
    def verdict(self) -> str:
        """How it went, in a few words."""
        if not self.is_judged:
            return f"slowest {duration(max(second.latency_s for second in self.seconds))}"
        num_wrong = sum(second.fault == 1 for second in self.seconds)
        counts = {"wrong": num_wrong, "partly": self.num_faulty - num_wrong}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "all right"


def write_report(watched: Watched, path: Path):
    """Write the page of a stream. Raises DataError for a stream of no second, OSError."""
    write_text(path, render_report(watched))


def render_report(watched: Watched) -> str:
    """The page of a stream, as HTML. Raises DataError for a stream of no second."""
    if not watched.seconds:
        raise DataError(f"{watched.title}: no second was watched, and a page needs at least one; watch longer")
    minutes = minutes_of(watched.seconds, watched.turn_s)
    worst = sorted((m for m in minutes if m.num_faulty or not m.is_judged), key=lambda minute: minute.rank)
    script = _environment().loader.get_source(_environment(), "report.js")[0]
    return (
        _environment()
        .get_template("report.html")
        .render(
            watched=watched,
            minutes=minutes,
            worst=worst[:_NUM_WORST],
            pictures=[(thumbnail, data_url(thumbnail)) for thumbnail in watched.thumbnails],
            by_start={second.start_s: second for second in watched.seconds},
            has_truth=any(second.truth is not None for second in watched.seconds),
            is_judged=any(minute.is_judged for minute in minutes),
            charts=_charts(watched, minutes),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def minutes_of(seconds: Sequence[WatchedSecond], turn_s: float) -> list[Minute]:
    """The minutes of a stream, ranked by their faults, or by their slowest turn where nothing was judged."""
    by_number: dict[int, list[WatchedSecond]] = {}
    for second in seconds:
        by_number.setdefault(int(second.start_s // _MINUTE_S), []).append(second)
    worst_first = sorted(by_number, key=lambda number: (_badness(by_number[number]), -number), reverse=True)
    ranks = {number: rank for rank, number in enumerate(worst_first)}
    return [
        Minute(number, of_minute, strip(of_minute, number * _MINUTE_S, turn_s), ranks[number])
        for number, of_minute in sorted(by_number.items())
    ]


def _badness(seconds: Iterable[WatchedSecond]) -> tuple[float, float]:
    seconds = list(seconds)
    return sum(second.fault or 0.0 for second in seconds), max(second.latency_s for second in seconds)


def clock(time_s: float) -> str:
    """A time of the stream: 12:05, or 1:12:05 from an hour on."""
    hours, rest = divmod(int(time_s), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def data_url(thumbnail: Thumbnail) -> str:
    """A picture as part of the page: a small JPEG."""
    image = Image.fromarray(thumbnail.picture.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    file = BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def mark_of(second: WatchedSecond) -> str:
    """What became of a turn, in a word."""
    if second.said is None:
        return "not watched"
    if second.fault is None:
        return ""
    if second.fault == 0:
        return "right"
    if second.truth and not second.said:
        return "missed"
    return "partly" if second.fault < 1 else "wrong"


def words_of(second: WatchedSecond) -> list[tuple[str, bool]]:
    """The words said, and of a turn that is partly right which of them the truth does not have."""
    words = (second.said or "").split()
    if not second.truth or not second.fault or second.fault >= 1:
        return [(word, False) for word in words]
    true_words = set(second.truth.split())
    return [(word, word not in true_words) for word in words]


def _charts(watched: Watched, minutes: Sequence[Minute]) -> dict[str, Chart | None]:
    return {
        "faults": fault_chart([(m.start_s, m.num_faulty, len(m.seconds)) for m in minutes if m.is_judged]),
        "cache": cache_chart(watched.seconds, watched.turn_s, watched.capacity_tokens),
        "latency": latency_chart(watched.seconds, watched.turn_s),
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
