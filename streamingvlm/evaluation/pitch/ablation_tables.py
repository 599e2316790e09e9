"""The paper's ablations in miniature: the rows of each table, with the paper's figures beside them.

The paper's figures (arXiv 2510.09608, Sec. 4) are win rates in percent, judged by a language model on sports videos.
They measure something else than a score on Pitch, so only the order of the rows is comparable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from streamingvlm.config import CacheConfig
from streamingvlm.errors import ConfigError

QUALITY = ("macro-F1", "lines right", "side", "club", "score")
TIMING = ("score at goals", "silence", "late", "delay, s")
COST = ("time per token, ms", "cache, tokens", "stream, s")
FIFTHS = ("1st fifth", "2nd", "3rd", "4th", "5th", "last/first")

_WIN_RATE = ("paper: wins over GPT-4o mini, %",)


@dataclass(frozen=True)
class AblationRow:
    """One row of a table: a configuration of the stream.

    cache: settings of CacheConfig that differ from the checkpoint's own; checkpoint: a model other than the table's;
    black_frames: True to replace all frames by black ones; paper: the paper's figures for the same ablation, in the
    order of `AblationTable.paper`, empty if it has none.
    """

    name: str
    cache: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    black_frames: bool = False
    paper: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblationTable:
    """An ablation.

    column_groups: names of measures; each group becomes a table of its own, so that none is too wide to read.
    paper: headings of the paper's figures, empty if it has none for any row.
    by_time: True to plot measures along the stream, False to plot the rows beside each other.
    note: added below the table.
    """

    name: str
    title: str
    rows: tuple[AblationRow, ...]
    column_groups: tuple[tuple[str, ...], ...] = (QUALITY, TIMING, COST)
    paper: tuple[str, ...] = ()
    by_time: bool = False
    note: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The measures of all groups."""
        return tuple(chain(*self.column_groups))


def ablation_table(name: str, *, base: CacheConfig, fps: float, checkpoints: Mapping[str, str | None]) -> AblationTable:
    """Return the table of a name, for a checkpoint that streams with ``base`` and ``fps``.

    checkpoints: for ``training``, model folders by the name of their row. Raises ConfigError for an unknown name.
    """
    if name not in _TABLES:
        raise ConfigError(f"tables has {name!r}, which is unknown; choose from {', '.join(_TABLES)}")
    return _TABLES[name](base, fps, checkpoints)


def _modes(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    return AblationTable(
        "modes",
        "Four ways to keep the past",
        (
            AblationRow("full attention", {"policy": "full"}, paper=("3.89",)),
            AblationRow("window without overlap", {"policy": "window"}, paper=("23.54",)),
            AblationRow("window with recompute", {"recompute": True}, paper=("66.54",)),
            AblationRow("streaming", paper=("66.18",)),
        ),
        paper=_WIN_RATE,
        by_time=True,
        note="A stream that exceeded a limit of memory or time is scored as silent from there on.",
    )


def _positions(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    return AblationTable(
        "positions",
        "Rotary positions",
        (
            AblationRow("contiguous", {"positions": "contiguous"}, paper=("66.18",)),
            AblationRow("native", {"positions": "native"}, paper=("25.09",)),
        ),
        paper=_WIN_RATE,
        by_time=True,
    )


def _text(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    sink, window = base.text_sink_tokens, base.text_window_tokens
    budget = sink + window
    paper = {(sink, 0): ("69.68",), (0, window): ("66.76",), (sink, window): ("73.64",)}
    shares = [(share * budget // 4, budget - share * budget // 4) for share in range(5)]
    sizes = dict.fromkeys([(sink, window), (sink, 0), (0, window), *shares, (0, 0)])
    steps = sorted({1, 2 * base.text_step_tokens, max(1, window)} - {base.text_step_tokens})
    return AblationTable(
        "text",
        "Text kept: sink and window",
        (
            *(AblationRow(f"{a} / {b}", _text_kept(a, b), paper=paper.get((a, b), ())) for a, b in sizes),
            *(
                AblationRow(
                    f"{sink} / {window}, in steps of {step}", _text_kept(sink, window) | {"text_step_tokens": step}
                )
                for step in steps
            ),
        ),
        paper=("paper: wins, basketball, 512 for each that is kept, %",),
        note=f"Rows: sink / window in tokens. The window is evicted in steps of {base.text_step_tokens}, unless "
        "the row names another step.",
    )


def _text_kept(sink_tokens: int, window_tokens: int) -> dict[str, int]:
    return {"text_sink_tokens": sink_tokens, "text_window_tokens": window_tokens}


def _vision(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    paper = {1: ("63.46",), 4: ("66.08",), 8: ("65.66",), 16: ("66.18",), 32: ("65.49",)}
    windows = [
        AblationRow(f"{s} s" + " (no past)" * (s == 1), {"vision_window_s": float(s)}, paper=paper.get(s, ()))
        for s in (1, 2, 4, 8, 16, 32)
    ]
    return AblationTable(
        "vision",
        "Vision kept",
        (AblationRow("0 s (black pictures)", black_frames=True, paper=("52.90",)), *windows),
        paper=_WIN_RATE,
        note="The window includes the newest second, so 1 s is no past vision. A window of 0 s would leave no frame; "
        "its row uses black frames instead. The paper does not define its 0 s.",
    )


def _fifths(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    modes = {row.name: row.cache for row in _modes(base, fps, checkpoints).rows}
    paper = {
        "full attention": ("15.2", "3.1", "1.1", "0", "0"),
        "streaming": ("66.4", "64.3", "67.5", "66.8", "66.0"),
    }
    return AblationTable(
        "fifths",
        "By fifths of the stream: macro-F1",
        tuple(AblationRow(name, cache, paper=paper.get(name, ())) for name, cache in modes.items()),
        column_groups=(FIFTHS[:5], FIFTHS[5:]),
        paper=("paper: wins in the 1st fifth, %", "2nd, %", "3rd, %", "4th, %", "5th, %"),
        by_time=True,
    )


def _simple_stream(base: CacheConfig, fps: float, checkpoints: Mapping) -> AblationTable:
    def newest(num_frames: int, **text: int) -> dict[str, Any]:
        """Prefill the newest frames again each turn: no earlier keys, and only the text that ``text`` keeps."""
        no_text = {"text_sink_tokens": 0, "text_window_tokens": 0, "turn_window_s": 1.0}
        return no_text | {"recompute": True, "recompute_text": False, "vision_window_s": num_frames / fps} | text

    per_s = round(fps)
    return AblationTable(
        "simple_stream",
        "SimpleStream: the newest frames, no cache, no memory of text",
        (
            AblationRow("streaming"),
            *(AblationRow(f"newest {n} frames", newest(n)) for n in (per_s, 2 * per_s, 4 * per_s, 16 * per_s)),
            AblationRow(
                f"newest {2 * per_s} frames and the introduction",
                newest(2 * per_s, text_sink_tokens=base.text_sink_tokens),
            ),
        ),
    )


def _training(base: CacheConfig, fps: float, checkpoints: Mapping[str, str | None]) -> AblationTable:
    if missing := [name for name, folder in checkpoints.items() if not folder]:
        raise ConfigError(f"tables=[training] needs a model for each row; give checkpoints.{missing[0]}=FOLDER")
    paper = {"overlapped": ("66.18",), "apart": ("62.51",)}
    return AblationTable(
        "training",
        "Trained on chunks that overlap, and on chunks that share nothing",
        tuple(
            AblationRow(name, checkpoint=str(folder), paper=paper.get(name, ())) for name, folder in checkpoints.items()
        ),
        paper=_WIN_RATE,
    )


_TABLES: dict[str, Callable[[CacheConfig, float, Mapping[str, str | None]], AblationTable]] = {
    "modes": _modes,
    "positions": _positions,
    "text": _text,
    "vision": _vision,
    "fifths": _fifths,
    "simple_stream": _simple_stream,
    "training": _training,
}
TABLE_NAMES = tuple(_TABLES)
