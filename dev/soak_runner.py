"""Run the soak test of ``soak.py``: stream for hours, and compare the last row with the first.

A memory leak shows in the resident memory. A data structure that grows and is scanned shows in the time of a turn, too.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from streamingvlm import StreamingSession
from streamingvlm.cli.bench_record import make_record
from streamingvlm.errors import ConfigError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.pitch import Match, render
from streamingvlm.video.video_turn import VideoTurn

_LOG = logging.getLogger(__name__)
_SECONDS_PER_HOUR = 3600


class TurnLog:
    """The time of each turn and the resident memory after it, in arrays of fixed size that do not grow with the run."""

    def __init__(self, num_turns: int):
        self.turn_s, self.cpu_s, self.resident_bytes = np.full((3, num_turns), np.nan)
        self.num_turns = self.num_questions = 0
        self._process = psutil.Process()

    def add(self, turn_s: float, cpu_s: float):
        """Add one turn: its wall-clock time, its CPU time, and the resident memory now."""
        turn, self.num_turns = self.num_turns, self.num_turns + 1
        self.turn_s[turn], self.cpu_s[turn] = turn_s, cpu_s
        self.resident_bytes[turn] = self._process.memory_info().rss

    def summarize(self, start: int, stop: int) -> dict[str, float]:
        """Summarize the turns from ``start`` to ``stop``: times in ms, memory in MB."""
        turn_ms, cpu_ms = self.turn_s[start:stop] * 1e3, self.cpu_s[start:stop] * 1e3
        resident_bytes = self.resident_bytes[start:stop]
        return {
            "turn_p50_ms": float(np.percentile(turn_ms, 50)),
            "turn_p99_ms": float(np.percentile(turn_ms, 99)),
            "cpu_p50_ms": float(np.percentile(cpu_ms, 50)),
            "cpu_p99_ms": float(np.percentile(cpu_ms, 99)),
            # Mean in bytes, then converted: the mean of equal values in MB can be an ulp above their maximum.
            "resident_mb": float(resident_bytes.mean()) / 1e6,
            "resident_max_mb": float(resident_bytes.max()) / 1e6,
        }


def soak(options: Mapping[str, Any]) -> dict[str, Any]:
    """Stream for the given hours, or until Ctrl-C after at least two rows; return the record.

    Errors of the stream are not caught.
    """
    match = Match(options["seed"])
    session = open_session(options, match)
    turn_s = session.video_config.turn_s
    num_warm_up, num_in_row, num_rows = count_turns(options, turn_s)
    turns, started_s = TurnLog(num_warm_up + num_rows * num_in_row), time.monotonic()
    stops = range(num_warm_up + num_in_row, len(turns.turn_s) + 1, num_in_row)
    try:
        run_session(session, match_turns(match, session, len(turns.turn_s)), turns, options)
    except KeyboardInterrupt:
        stops = [stop for stop in stops if stop <= turns.num_turns]
        if len(stops) < 2:
            raise
    rows = [{"start_s": (stop - num_in_row) * turn_s, **turns.summarize(stop - num_in_row, stop)} for stop in stops]
    return make_record(
        "soak",
        session.model.device,
        settings=dict(options),
        num_turns=turns.num_turns,
        num_tokens=session.stats.num_tokens,
        num_questions=turns.num_questions,
        wall_s=time.monotonic() - started_s,
        rows=rows,
        **growth(rows, options),
    )


def count_turns(options: Mapping[str, Any], turn_s: float) -> tuple[int, int, int]:
    """Return the turns of the warm-up, the turns of a row, and the number of rows.

    Raises ConfigError for fewer than two rows.
    """
    hours, row_s = (positive(name, options[name]) for name in ("hours", "row_s"))
    num_rows = round(hours * _SECONDS_PER_HOUR / row_s)
    if num_rows < 2:
        raise ConfigError(f"hours={hours:g} is shorter than two rows of row_s={row_s:g}; give more hours")
    return round(options["warm_up_s"] / turn_s), max(1, round(row_s / turn_s)), num_rows


def positive(name: str, value: Any) -> float:
    """Return an option as a positive number; the plain word of a command line is text. Raises ConfigError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"{name}={value} is not a positive number; give one")
    return number


def open_session(options: Mapping[str, Any], match: Match) -> StreamingSession:
    """Open a session with the match's introduction as previous text."""
    return StreamingSession.from_pretrained(
        **options["model"],
        cache=options["cache"],
        video=options["video"],
        sampling=options["sampling"],
        previous_text=match.intro,
        autosave=options["autosave"],
    )


def match_turns(match: Match, session: StreamingSession, num_turns: int) -> Iterator[VideoTurn]:
    """Render the match turn by turn, on demand. Raises ConfigError if ``turn_s`` is not 1."""
    fps, turn_s = session.video_config.fps, session.video_config.turn_s
    if turn_s != 1.0:
        raise ConfigError(f"video.turn_s={turn_s:g}, but a match has turns of 1 s; leave it at 1")
    for index, second in zip(range(num_turns), match.seconds(), strict=False):
        yield VideoTurn(index, float(index), index + 1.0, render(second, fps=fps))


def run_session(
    session: StreamingSession, video_turns: Iterator[VideoTurn], turns: TurnLog, options: Mapping[str, Any]
):
    """Stream, and ask the question at its interval."""
    ask_every, report_every = options["ask_every_s"], options["report_every_s"]
    started_s = time.monotonic()

    def step(video_turn: VideoTurn) -> Commentary:
        cpu_s = time.process_time()
        line = session.step(video_turn)
        turns.add(line.latency_s, time.process_time() - cpu_s)
        return line

    for line in session.stream(video_turns, step=step):
        if ask_every and line.end_s % ask_every == 0:
            session.ask(options["question"])
            turns.num_questions += 1
        if line.end_s % report_every == 0:
            recent = turns.summarize(max(0, turns.num_turns - report_every), turns.num_turns)
            realtime_factor = line.end_s / (time.monotonic() - started_s)
            _LOG.info(
                "%.0f of %d s of stream, %.1fx real time, turn p99 %.1f ms, %.1f MB resident",
                line.end_s,
                len(turns.turn_s),
                realtime_factor,
                recent["turn_p99_ms"],
                recent["resident_mb"],
            )


def growth(rows: Sequence[Mapping[str, float]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the last row with the first, as relative growth, and judge whether it is flat.

    Judged by CPU time, because wall-clock time also depends on other work of the machine.
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


def rows_table(rows: Sequence[Mapping[str, float]]) -> str:
    """Format the rows as a table of text."""
    columns = {
        "turn p50 ms": "turn_p50_ms",
        "p99 ms": "turn_p99_ms",
        "CPU p50 ms": "cpu_p50_ms",
        "CPU p99 ms": "cpu_p99_ms",
        "resident MB": "resident_mb",
        "max MB": "resident_max_mb",
    }
    lines = [f"{'from s':>8}" + "".join(f"  {title:>12}" for title in columns)]
    for row in rows:
        lines.append(f"{row['start_s']:>8.0f}" + "".join(f"  {row[key]:>12.1f}" for key in columns.values()))
    return "\n".join(lines)
