"""The contents of a cache as a few spans of tokens, and as a bar that is drawn to scale."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

# Name and colour of each kind of span, in the order of the legend; the colours are those of the server's page.
_KINDS = {
    "prompt": ("system prompt", "#8b8f98"),
    "sink": ("text sink", "#6b4fa0"),
    "window": ("text window", "#a88bd6"),
    "query": ("query", "#12897b"),
    "vision": ("vision window", "#2f7fc2"),
    "text": ("replies and markup", "#d39a3c"),
}


@dataclass(frozen=True)
class CacheSpan:
    """Adjacent tokens of one kind.

    kind: ``prompt``; ``sink`` or ``window``, the two parts of the text kept of evicted turns; ``vision``; ``text``, a
        turn's reply and markup; or ``query``. turn: of vision, text and query.
    """

    kind: str
    num_tokens: int
    turn: int | None = None

    def as_json(self) -> list[Any]:
        """Return a compact list: it is sent every turn."""
        return [self.kind, self.num_tokens] + ([] if self.turn is None else [self.turn])


def merged(spans: Iterable[CacheSpan]) -> list[CacheSpan]:
    """Join neighbours of one kind and turn."""
    return [
        CacheSpan(kind, sum(span.num_tokens for span in group), turn)
        for (kind, turn), group in groupby(spans, key=lambda span: (span.kind, span.turn))
    ]


def bar_html(spans: Sequence[CacheSpan]) -> str:
    """Draw spans as an HTML bar, each as wide as its share of the tokens, above the numbers of the turns."""
    blocks = "".join(_block(span) for span in spans)
    turns = "".join(_turn_label(turn, list(group)) for turn, group in groupby(spans, key=lambda span: span.turn))
    return (
        f'<div style="display:flex;height:2em">{blocks}</div>'
        f'<div style="display:flex;font-size:75%">{turns}</div>'
        f"<div>{' &nbsp; '.join(_legend(spans))}</div>"
    )


def _block(span: CacheSpan) -> str:
    name, colour = _KINDS[span.kind]
    title = f"{name}: {span.num_tokens} tokens" + ("" if span.turn is None else f", turn {span.turn}")
    edge = "box-shadow:inset -1px 0 rgba(255,255,255,.5)"
    return f'<div title="{escape(title)}" style="flex:{span.num_tokens} 0 0;background:{colour};{edge}"></div>'


def _turn_label(turn: int | None, spans: Sequence[CacheSpan]) -> str:
    num_tokens = sum(span.num_tokens for span in spans)
    label = "" if turn is None else str(turn)
    return f'<div style="flex:{num_tokens} 0 0;overflow:hidden;text-align:center">{label}</div>'


def _legend(spans: Sequence[CacheSpan]) -> Iterator[str]:
    for kind, (name, colour) in _KINDS.items():
        if num_tokens := sum(span.num_tokens for span in spans if span.kind == kind):
            yield f'<span style="color:{colour}">&#9632;</span> {escape(name)} {num_tokens}'
    yield f"{sum(span.num_tokens for span in spans)} tokens; the numbers below the bar are turns"
