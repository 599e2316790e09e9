"""All state of one stream, in one object. It owns no weights and no scheduling state."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from streamingvlm.cache.layout import CacheLayout
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.sampling import Sampler
from streamingvlm.inference.sequence import SequenceState, TokenSequence
from streamingvlm.inference.stats import SessionStats
from streamingvlm.inference.stream_config import StreamConfig
from streamingvlm.turns import Turn
from streamingvlm.video.video_turn import VideoTurn


@dataclass(frozen=True)
class StatsTotals:
    """The totals of `SessionStats` that a snapshot saves."""

    num_turns: int = 0
    num_tokens: int = 0
    stream_s: float = 0.0
    busy_s: float = 0.0
    cache_tokens: int = 0


@dataclass(frozen=True)
class StreamState:
    """The state that turns change, except keys and values.

    cached_query: the query in the cache; random_state: state of the sampler's generator.
    """

    sequence: SequenceState
    num_turns: int
    cached_query: str
    totals: StatsTotals
    random_state: torch.Tensor


@dataclass(frozen=True)
class StreamView:
    """A view of a stream between two turns, for inspection only.

    ids, layout, positions [3, T]: of all tokens; next_position: of the token after them.
    num_cached: number of leading tokens with cached keys and values.
    keys, values: [layers, kv heads, num_cached, head size], as stored, keys before the rotary embedding. They alias the
        live cache: clone them to keep them.
    allocated_tokens: tokens that fit in the memory reserved for the stream's cache; num_bytes: its size.
    stale_range: cached tokens that will be recomputed; vision_turns: turns whose features are still needed.
    random_state: state of the sampler's generator.
    """

    ids: list[int]
    layout: CacheLayout
    positions: torch.Tensor
    next_position: float
    num_cached: int
    keys: torch.Tensor
    values: torch.Tensor
    allocated_tokens: int
    num_bytes: int
    stale_range: range
    vision_turns: frozenset[int]
    random_state: torch.Tensor


class Stream:
    """One stream of video: settings, tokens, sampler, stats, and the number of turns.

    query: the standing instruction. Any thread may set it at any time; it takes effect with the next turn.
    on_token: called with each new piece of text.
    on_turn_end: hooks called with the stream after each turn, in the thread that runs the model.
    """

    def __init__(
        self,
        config: StreamConfig,
        sequence: TokenSequence,
        sampler: Sampler,
        *,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ):
        self.config = config
        self.sequence = sequence
        self.sampler = sampler
        self.query = query
        self.previous_text = previous_text
        self.on_token = on_token
        self.on_turn_end: list[Callable[[Stream], None]] = []
        self.is_closed = False
        self.capacity_tokens = config.capacity_tokens(query, previous_text)
        self.reset()

    @property
    def slot(self) -> int:
        """The stream's index in the engine: its row of per-stream buffers."""
        return self.sampler.slot

    def reset(self):
        """Start again: empty cache, time 0, sampler at its seed."""
        self.sequence.clear()
        self.sampler.reset()
        self.num_turns = 0
        self.cached_query = ""
        self.stats = SessionStats(capacity_tokens=self.capacity_tokens)

    @property
    def end_s(self) -> float:
        """Stream time at which the last turn ended, 0 before the first."""
        return self.sequence.layout.segments[-1].end_s if self.num_turns else 0.0

    def set_cached_query(self, query: str):
        """Record which query is cached, and update capacity_tokens, which depends on its length."""
        if query != self.cached_query:
            self.cached_query, self.capacity_tokens = query, self.config.capacity_tokens(query, self.previous_text)
            self.stats.capacity_tokens = self.capacity_tokens

    def finish_turn(
        self,
        turn: Turn,
        created_at: float,
        text: str,
        num_tokens: int,
        *,
        silence: float | None = None,
        video_turn: VideoTurn | None = None,
    ) -> Commentary:
        """Record a finished turn, call the hooks, and return the Commentary.

        created_at: time.perf_counter() at which the turn was submitted. video_turn: source of the lag and the detail.
        """
        self.num_turns += 1
        latency_s = time.perf_counter() - created_at
        line = Commentary(turn.start_s, turn.end_s, text, num_tokens, latency_s, silence, **_lag_of(video_turn))
        self.stats.record_turn(
            stream_s=turn.end_s - turn.start_s,
            latency_s=latency_s,
            num_tokens=num_tokens,
            cache_tokens=self.sequence.num_tokens,
        )
        self.stats.record_lag(age_s=line.age_s, dropped_s=line.dropped_s, coalesced_s=line.coalesced_s)
        for hook in self.on_turn_end:
            hook(self)
        return line

    @property
    def state(self) -> StreamState:
        """The state between two turns."""
        totals = StatsTotals(**{field.name: getattr(self.stats, field.name) for field in fields(StatsTotals)})
        random_state = self.sampler.generator.get_state()
        return StreamState(self.sequence.state, self.num_turns, self.cached_query, totals, random_state)

    @state.setter
    def state(self, state: StreamState):
        self.sequence.state = state.sequence
        self.num_turns = state.num_turns
        self.cached_query = state.cached_query
        for field in fields(StatsTotals):
            setattr(self.stats, field.name, getattr(state.totals, field.name))
        self.sampler.generator.set_state(state.random_state)

    def inspect(self) -> StreamView:
        """Return a view of the stream between two turns."""
        sequence, kv = self.sequence, self.sequence.kv
        return StreamView(
            ids=list(sequence.ids),
            layout=sequence.layout,
            positions=sequence.positions,
            next_position=sequence.next_position,
            num_cached=kv.num_tokens,
            keys=kv.keys[:, :, : kv.num_tokens],
            values=kv.values[:, :, : kv.num_tokens],
            allocated_tokens=kv.capacity,
            num_bytes=kv.num_bytes,
            stale_range=sequence.stale_range,
            vision_turns=frozenset(sequence.vision),
            random_state=self.sampler.generator.get_state(),
        )


def _lag_of(video_turn: VideoTurn | None) -> dict[str, float | None]:
    """Return the lag and detail fields of a Commentary."""
    if video_turn is None:
        return {}
    return {
        "age_s": None if video_turn.captured_s is None else time.monotonic() - video_turn.captured_s,
        "dropped_s": video_turn.dropped_s,
        "coalesced_s": video_turn.coalesced_s,
        "detail": video_turn.detail,
    }
