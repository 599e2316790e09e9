"""The paper's ablations in miniature: which rows each table has, and which figure of the paper stands beside them.

The paper's figures (arXiv 2510.09608, Sec. 4) are win rates in percent, judged by a language model on videos of sport.
They measure something else than a score on Pitch does and are there for orientation: what is compared is the order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamingvlm.config import CacheConfig
from streamingvlm.errors import ConfigError

QUALITY = ("macro-F1", "lines right", "side", "club", "score", "score at goals", "silence", "late", "delay s")
COST = ("ms a token", "cache tokens", "watched s")
FIFTHS = ("1st fifth", "2nd", "3rd", "4th", "5th", "last/first")

_WIN_RATE = "paper: wins over GPT-4o mini, %"


@dataclass(frozen=True)
class Row:
    """One line of a table: a way to watch.

    cache: settings of CacheConfig that differ from the checkpoint's own; checkpoint: another one than the table's;
    blindfold: whether black pictures are shown; paper: the paper's figure for the same ablation, "" where it has none.
    """

    name: str
    cache: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    blindfold: bool = False
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """An ablation.

    columns: names of measures; paper: what the paper's figures are, "" where it has none of any row; by_time: whether
    its figure follows the stream, else it compares the rows; note: what a reader has to know.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = QUALITY + COST
    paper: str = ""
    by_time: bool = False
    note: str = ""


def table_named(name: str, *, base: CacheConfig, fps: float, checkpoints: Mapping[str, str | None]) -> Table:
    """The table of a name, for a checkpoint that is watched with ``base`` and ``fps``.

    checkpoints: for ``training``, folders by the name of their row. Raises ConfigError for a name that is none.
    """
    if name not in _TABLES:
        raise ConfigError(f"tables has {name!r}, which is unknown; choose from {', '.join(_TABLES)}")
    return _TABLES[name](base, fps, checkpoints)


def _modes(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    return Table(
        "modes",
        "Four ways to keep the past",
        (
            Row("full attention", {"policy": "full"}, paper="3.89"),
            Row("window without overlap", {"policy": "window"}, paper="23.54"),
            Row("window with recompute", {"recompute": True}, paper="66.54"),
            Row("streaming", paper="66.18"),
        ),
        paper=_WIN_RATE,
        by_time=True,
        note="A stream that passed a limit of memory or time is scored as silent from there on.",
    )


def _positions(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    return Table(
        "positions",
        "Rotary positions",
        (
            Row("contiguous", {"positions": "contiguous"}, paper="66.18"),
            Row("native", {"positions": "native"}, paper="25.09"),
        ),
        paper=_WIN_RATE,
        by_time=True,
    )


def _text(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    sink, window = base.text_sink_tokens, base.text_window_tokens
    budget = sink + window
    paper = {(sink, 0): "69.68", (0, window): "66.76", (sink, window): "73.64"}
    shares = [(share * budget // 4, budget - share * budget // 4) for share in range(5)]
    sizes = dict.fromkeys([(sink, window), (sink, 0), (0, window), *shares, (0, 0)])
    steps = sorted({1, 2 * base.text_step_tokens, max(1, window)} - {base.text_step_tokens})
    return Table(
        "text",
        "Text kept: sink and window",
        (
            *(Row(f"{a} / {b}", _text_kept(a, b), paper=paper.get((a, b), "")) for a, b in sizes),
            *(
                Row(f"{sink} / {window}, in steps of {step}", _text_kept(sink, window) | {"text_step_tokens": step})
                for step in steps
            ),
        ),
        paper="paper: wins, basketball, 512 for each that is kept, %",
        note=f"Sink / window, tokens; the window is cut in steps of {base.text_step_tokens}, or as the row says.",
    )


def _text_kept(sink_tokens: int, window_tokens: int) -> dict[str, int]:
    return {"text_sink_tokens": sink_tokens, "text_window_tokens": window_tokens}


def _vision(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    paper = {1: "63.46", 4: "66.08", 8: "65.66", 16: "66.18", 32: "65.49"}
    seen = [
        Row(f"{s} s" + " (no past)" * (s == 1), {"vision_window_s": float(s)}, paper=paper.get(s, ""))
        for s in (1, 2, 4, 8, 16, 32)
    ]
    return Table(
        "vision",
        "Vision kept",
        (Row("0 s (black pictures)", blindfold=True, paper="52.90"), *seen),
        paper=_WIN_RATE,
        note="The window counts the newest second: 1 s is no past vision. A window of 0 s would leave nothing to see; "
        "its row shows the model black pictures. What the paper's 0 means, it does not say.",
    )


def _fifths(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    modes = {row.name: row.cache for row in _modes(base, fps, checkpoints).rows}
    paper = {"full attention": "15.2 / 3.1 / 1.1 / 0 / 0", "streaming": "66.4 / 64.3 / 67.5 / 66.8 / 66.0"}
    return Table(
        "fifths",
        "By fifths of the stream: macro-F1",
        tuple(Row(name, cache, paper=paper.get(name, "")) for name, cache in modes.items()),
        columns=FIFTHS,
        paper="paper: wins by fifths, %",
        by_time=True,
    )


def _simple_stream(base: CacheConfig, fps: float, checkpoints: Mapping) -> Table:
    def newest(num_frames: int, **text: int) -> dict[str, Any]:
        """The newest frames prefilled anew each second: no keys of before, and no words but those of ``text``."""
        forgetful = {"text_sink_tokens": 0, "text_window_tokens": 0, "turn_window_s": 1.0}
        return forgetful | {"recompute": True, "recompute_text": False, "vision_window_s": num_frames / fps} | text

    a_second = round(fps)
    return Table(
        "simple_stream",
        "SimpleStream: the newest frames, no cache, no memory of text",
        (
            Row("streaming"),
            *(Row(f"newest {n} frames", newest(n)) for n in (a_second, 2 * a_second, 4 * a_second, 16 * a_second)),
            Row(
                f"newest {2 * a_second} frames and the introduction",
                newest(2 * a_second, text_sink_tokens=base.text_sink_tokens),
            ),
        ),
    )


def _training(base: CacheConfig, fps: float, checkpoints: Mapping[str, str | None]) -> Table:
    if missing := [name for name, folder in checkpoints.items() if not folder]:
        raise ConfigError(f"tables=[training] needs a model for each row; give checkpoints.{missing[0]}=FOLDER")
    paper = {"overlapped": "66.18", "apart": "62.51"}
    return Table(
        "training",
        "Trained on chunks that overlap, and on chunks that share nothing",
        tuple(Row(name, checkpoint=str(folder), paper=paper.get(name, "")) for name, folder in checkpoints.items()),
        paper=_WIN_RATE,
    )


_TABLES: dict[str, Callable[[CacheConfig, float, Mapping[str, str | None]], Table]] = {
    "modes": _modes,
    "positions": _positions,
    "text": _text,
    "vision": _vision,
    "fifths": _fifths,
    "simple_stream": _simple_stream,
    "training": _training,
}
TABLE_NAMES = tuple(_TABLES)
