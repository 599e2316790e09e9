"""What ``soak.py`` does once its command line is understood: stream for hours, and hold the end against the beginning.

A leak shows in the resident memory; a list that grows shows in the time of a turn, too.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from bench_record import record_of

from streamingvlm import StreamingSession
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.pitch import Match, render
from streamingvlm.video.video_turn import VideoTurn

_LOG = logging.getLogger(__name__)
_SECONDS_AN_HOUR = 3600


class Gauge:
    """What each turn took and how much memory there was after it; its own memory is taken at once, and never grows."""

    def __init__(self, num_turns: int):
        self.turn_s, self.cpu_s, self.resident_bytes = np.full((3, num_turns), np.nan)
        self.num_turns = self.num_questions = 0
        self._process = psutil.Process()

    def note(self, turn_s: float, cpu_s: float):
        """Note one turn, its seconds by the clock and of the processor, and the memory that is resident now."""
        turn, self.num_turns = self.num_turns, self.num_turns + 1
        self.turn_s[turn], self.cpu_s[turn] = turn_s, cpu_s
        self.resident_bytes[turn] = self._process.memory_info().rss

    def figures(self, start: int, stop: int) -> dict[str, float]:
        """The figures of some turns: times in ms, memory in MB."""
        turn_ms, cpu_ms = self.turn_s[start:stop] * 1e3, self.cpu_s[start:stop] * 1e3
        resident_bytes = self.resident_bytes[start:stop]
        return {
            "turn_p50_ms": float(np.percentile(turn_ms, 50)),
            "turn_p99_ms": float(np.percentile(turn_ms, 99)),
            "cpu_p50_ms": float(np.percentile(cpu_ms, 50)),
            "cpu_p99_ms": float(np.percentile(cpu_ms, 99)),
            # Means of whole bytes: those of MB, when all are equal, may come out an ulp above the most.
            "resident_mb": float(resident_bytes.mean()) / 1e6,
            "resident_most_mb": float(resident_bytes.max()) / 1e6,
        }


def soak(options: Mapping[str, Any]) -> dict[str, Any]:
    """Stream for as long as the options say, or until Ctrl-C after two rows; return the record.

    An error of the stream is not caught.
    """
    match = Match(options["seed"])
    session = open_session(options, match)
    turn_s = session.video_config.turn_s
    num_warm_up, num_in_row, num_rows = turns_of(options, turn_s)
    gauge, began_s = Gauge(num_warm_up + num_rows * num_in_row), time.monotonic()
    stops = range(num_warm_up + num_in_row, len(gauge.turn_s) + 1, num_in_row)
    try:
        follow(session, seconds_of(match, session, len(gauge.turn_s)), gauge, options)
    except KeyboardInterrupt:
        stops = [stop for stop in stops if stop <= gauge.num_turns]
        if len(stops) < 2:
            raise
    rows = [{"start_s": (stop - num_in_row) * turn_s, **gauge.figures(stop - num_in_row, stop)} for stop in stops]
    return record_of(
        "soak",
        session.model.device,
        settings=dict(options),
        num_turns=gauge.num_turns,
        num_tokens=session.stats.num_tokens,
        num_questions=gauge.num_questions,
        wall_s=time.monotonic() - began_s,
        rows=rows,
        **growth(rows, options),
    )


def turns_of(options: Mapping[str, Any], turn_s: float) -> tuple[int, int, int]:
    """Turns of the warm-up, turns of a row, and the number of rows. Raises ConfigError for less than two rows."""
    hours, row_s = (positive(name, options[name]) for name in ("hours", "row_s"))
    num_rows = round(hours * _SECONDS_AN_HOUR / row_s)
    if num_rows < 2:
        raise ConfigError(f"hours={hours:g} has not two rows of row_s={row_s:g}; give more hours")
    return round(options["warm_up_s"] / turn_s), max(1, round(row_s / turn_s)), num_rows


def positive(name: str, value: Any) -> float:
    """The number that an option stands for, which a plain word of the command line gives as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"{name} is {value}, but must be a positive number")
    return number


def open_session(options: Mapping[str, Any], match: Match) -> StreamingSession:
    """A stream of its own engine, told who plays."""
    return StreamingSession.from_pretrained(
        **options["model"],
        cache=options["cache"],
        video=options["video"],
        sampling=options["sampling"],
        previous_text=match.intro,
        autosave=options["autosave"],
    )


def seconds_of(match: Match, session: StreamingSession, num_turns: int) -> Iterator[VideoTurn]:
    """The match, turn by turn, drawn as it is asked for. Raises ConfigError where a turn is not a second of it."""
    fps, turn_s = session.video_config.fps, session.video_config.turn_s
    if turn_s != 1.0:
        raise ConfigError(f"video.turn_s={turn_s:g}, but a match is drawn second by second; leave it at 1")
    for turn, shown in zip(range(num_turns), match.seconds(), strict=False):
        yield VideoTurn(turn, float(turn), turn + 1.0, render(shown, fps=fps))


def follow(session: StreamingSession, seconds: Iterator[VideoTurn], gauge: Gauge, options: Mapping[str, Any]):
    """Stream, asking now and then."""
    ask_every, report_every = options["ask_every_s"], options["report_every_s"]
    began_s = time.monotonic()

    def step(second: VideoTurn) -> Commentary:
        cpu_s = time.process_time()
        line = session.step(second)
        gauge.note(line.latency_s, time.process_time() - cpu_s)
        return line

    for line in session.stream(seconds, step=step):
        if ask_every and line.end_s % ask_every == 0:
            session.ask(options["question"])
            gauge.num_questions += 1
        if line.end_s % report_every == 0:
            recent = gauge.figures(max(0, gauge.num_turns - report_every), gauge.num_turns)
            pace = line.end_s / (time.monotonic() - began_s)
            _LOG.info(
                "%.0f of %d s of stream, %.1fx real time, p99 of a turn %.1f ms, %.1f MB resident",
                line.end_s,
                len(gauge.turn_s),
                pace,
                recent["turn_p99_ms"],
                recent["resident_mb"],
            )


def growth(rows: Sequence[Mapping[str, float]], options: Mapping[str, Any]) -> dict[str, Any]:
    """How the last row compares to the first, as shares, and whether that is flat.

    The time of a turn is judged by the processor's: by the clock it tells of the machine's other work, too.
    """
    first, last = rows[0], rows[-1]

    def grown(name: str) -> float:
        return last[name] / first[name] - 1

    memory, cpu_p99 = grown("resident_mb"), grown("cpu_p99_ms")
    return {
        "memory_growth": memory,
        "p99_growth": grown("turn_p99_ms"),
        "cpu_p99_growth": cpu_p99,
        "is_flat": memory <= options["max_memory_growth"] and cpu_p99 <= options["max_p99_growth"],
    }


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """The rows for people."""
    columns = {
        "turn p50 ms": "turn_p50_ms",
        "p99 ms": "turn_p99_ms",
        "CPU p50 ms": "cpu_p50_ms",
        "CPU p99 ms": "cpu_p99_ms",
        "resident MB": "resident_mb",
        "most MB": "resident_most_mb",
    }
    lines = [f"{'from s':>8}" + "".join(f"  {title:>12}" for title in columns)]
    for row in rows:
        lines.append(f"{row['start_s']:>8.0f}" + "".join(f"  {row[key]:>12.1f}" for key in columns.values()))
    return "\n".join(lines)
