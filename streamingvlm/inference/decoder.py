"""One stream's cache in the host's eyes: what was fed, what is kept, what is still to be fed.

The host's picture (layout, ids, positions) and the device's tensors (KVCache) are held in step here. Some tokens of the
picture have no keys yet: the last one or two of a reply are fed together with the next turn (they are *pending*). The
forward passes, which are of many streams at once, lie in forward.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile, islice

import torch

from streamingvlm.cache.eviction import EvictionPlan
from streamingvlm.cache.kv_cache import KVCache, num_in_place
from streamingvlm.cache.layout import CacheLayout, SegmentKind
from streamingvlm.cache.positions import contiguous_positions, next_position
from streamingvlm.config import CacheConfig
from streamingvlm.device import on_device
from streamingvlm.model.attention_metadata import SequenceSlice
from streamingvlm.model.vision import VisionFeatures
from streamingvlm.turns import Tokens


@dataclass(frozen=True)
class StreamState:
    """All that the host knows of what a stream's cache holds; with the tensors of its KVCache, the whole stream.

    layout, ids, positions [3, T]: the tokens in sight; next_position: where the token after them stands.
    serials: a number for each token of the layout; under the same number stand the same key and value for ever.
    num_cached: how many of the tokens, the first ones, have keys.
    unread: tokens whose keys are to be made anew, because words have joined the previous text.
    vision: by turn, what is seen there and not fed yet; under ``recompute`` what is seen in any turn in sight.
    """

    layout: CacheLayout
    ids: tuple[int, ...]
    positions: torch.Tensor
    next_position: float
    num_cached: int
    unread: range
    vision: dict[int, VisionFeatures]
    serials: tuple[int, ...] = ()


class StreamingDecoder:
    """Keeps one stream's cache as a policy asks for, and says what is to be fed.

    model: a StreamingModel; kv: the stream's tensors.
    """

    def __init__(self, model, config: CacheConfig, kv: KVCache):
        self.model = model
        self.config = config
        self.kv = kv
        self._num_serials = 0
        self.clear_()

    def clear_(self):
        """Forget the stream."""
        self.state = StreamState(CacheLayout(), (), torch.empty(3, 0), 0.0, 0, range(0), {})

    @property
    def state(self) -> StreamState:
        """The host's picture as it is now. Set to one of before, what was appended since is forgotten."""
        return StreamState(
            layout=self.layout,
            ids=tuple(self.ids),
            positions=self.positions,
            next_position=self.next_position,
            num_cached=self.kv.num_tokens,
            unread=self.unread,
            vision=dict(self.vision),
            serials=tuple(self.serials),
        )

    @state.setter
    def state(self, state: StreamState):
        self.layout = state.layout
        self.ids = list(state.ids)
        self._positions, self._next_position, self._is_numbered = state.positions, state.next_position, True
        self.kv.num_tokens = state.num_cached
        self.unread = state.unread
        self.vision = dict(state.vision)
        self.serials = list(state.serials)

    @property
    def num_tokens(self) -> int:
        """Tokens in sight, pending ones included."""
        return len(self.ids)

    @property
    def positions(self) -> torch.Tensor:
        """Where the tokens of the layout stand, float32 [3, T]."""
        self._number_()
        return self._positions

    @property
    def next_position(self) -> float:
        """Where the token after those of the layout stands."""
        self._number_()
        return self._next_position

    def evict_(self, eviction: EvictionPlan):
        """Drop and move what the policy decided; no pending token may stand before a cached one afterwards."""
        assert not self.moves_pending(eviction), "tokens that are to be moved must be fed first"
        if self.config.recompute:
            self.kv.clear_()
            self.serials = self.new_serials(len(self.serials))
        else:
            num_cached = self.kv.num_tokens
            self.kv.gather_([range(r.start, min(r.stop, num_cached)) for r in eviction.runs if r.start < num_cached])
            if self.config.recompute_text:
                # What stands before the first token that changed its place sees what it has always seen.
                first, stop = num_in_place(eviction.runs), eviction.layout.prologue.num_tokens
                self.unread = range(min(first, stop, self.unread.start if self.unread else stop), stop)
        self.ids = _taken(self.ids, eviction.runs)
        self.serials = _taken(self.serials, eviction.runs)
        if self._is_contiguous:
            self._is_numbered = False
        else:
            parts = [self._positions[:, r.start : r.stop] for r in (range(0), *eviction.runs)]
            self._positions = torch.cat(parts, dim=1)
        self.layout = eviction.layout
        turns_in_sight = {segment.turn for segment in self.layout.segments if segment.kind is SegmentKind.VISION}
        self.vision = {turn: vision for turn, vision in self.vision.items() if turn in turns_in_sight}

    def moves_pending(self, eviction: EvictionPlan) -> bool:
        """Whether a token that has no keys yet would no longer stand at the end, where it can still be fed."""
        if self.config.recompute:
            return False
        reaching_pending = dropwhile(lambda run: run.stop <= self.kv.num_tokens, eviction.runs)
        return any(run.start < self.kv.num_tokens for run in islice(reaching_pending, 1, None))

    def extend_(self, tokens: Tokens):
        """Append tokens; they wait to be fed."""
        if self._is_contiguous:
            self._is_numbered = False
        else:
            new = contiguous_positions(tokens.segments, self._next_position)
            self._positions = torch.cat([self._positions, new], dim=1)
            self._next_position = max(self._next_position, next_position(new))
        self.layout = self.layout.append(tokens.segments)
        self.ids.extend(tokens.ids)
        self.serials += self.new_serials(len(tokens))

    def new_serials(self, num_tokens: int) -> list[int]:
        """Numbers that no token has had."""
        self._num_serials += num_tokens
        return list(range(self._num_serials - num_tokens, self._num_serials))

    def see_(self, turn: int, vision: VisionFeatures):
        """Give what is seen in a turn whose tokens were appended; its vision tokens are all pending."""
        self.vision[turn] = vision

    def close_(self, tokens: Tokens):
        """Replace the loose tokens of the reply by the same tokens with their segments."""
        del self.ids[self.layout.num_tokens :]
        self.extend_(tokens)

    def prepare_(self, num_reply_tokens: int = 0):
        """Number what is in sight, rotate its keys to match, and make room for it and for a reply.

        Raises EngineFull where an unbounded stream, or a long question, outgrows what is there.
        """
        # Native positions are fixed by the keys made with them: while there are none, all are free.
        if self.kv.num_tokens == 0:
            self._is_numbered = False
        self.kv.reserve_(len(self.ids) + num_reply_tokens, is_bounded=self.config.is_bounded)
        reply = self.next_position + torch.arange(num_reply_tokens)
        positions = torch.cat([self.positions, reply.expand(3, -1)], dim=1)
        self.kv.rotate_(*self.model.rotation(on_device(positions, torch.float32, self.model.device)))

    @property
    def _is_contiguous(self) -> bool:
        return self.config.positions == "contiguous"

    def _number_(self):
        """Contiguous positions are a function of the layout: they are told once it is as the model will see it."""
        if not self._is_numbered:
            self._positions = contiguous_positions(self.layout.segments)
            self._next_position = next_position(self._positions)
            self._is_numbered = True

    def waiting(self, max_tokens: int | None = None) -> list[SequenceSlice]:
        """What is to be fed next, at most ``max_tokens`` of it: the previous text to be read anew, what is pending."""
        room = len(self.ids) if max_tokens is None else max_tokens
        reread = self.unread[:room]
        pending = range(self.kv.num_tokens, len(self.ids))[: room - len(reread)]
        return [SequenceSlice.of(self.kv, part.start, part.stop) for part in (reread, pending) if part]

    def fed_(self, runs: list[SequenceSlice]):
        """Count as fed what was ``waiting``; what was seen and is in the cache now is let go."""
        for run in runs:
            if run.first == self.kv.num_tokens:
                self.kv.num_tokens = run.stop
            else:
                self.unread = range(run.stop, self.unread.stop)
                self.serials[run.first : run.stop] = self.new_serials(len(run))
        if not self.config.recompute and self.kv.num_tokens == len(self.ids):
            self.vision.clear()

    def say_(self, token: int):
        """Append a token of the reply; ``said_`` once it has been fed."""
        self.ids.append(token)

    def token_numbers(self) -> tuple[int, int, int, int]:
        """Of the token that was said: its id, its row of the pool, the first row of the stream, how many it sees."""
        first, place = self.kv.extent.start, self.kv.num_tokens
        return self.ids[-1], first + place, first, place + 1

    @property
    def token_position(self) -> float:
        """Where the token that was said stands: loose tokens follow each other."""
        return self.next_position + self.kv.num_tokens - self.positions.shape[1]

    def said_(self):
        """Count the token of the reply that was fed as cached."""
        self.kv.num_tokens += 1

    def pending_vision(self, runs: list[SequenceSlice]) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """For each part of a vision span in ``runs``: where it begins, counted over the runs, and what it shows."""
        offset = 0
        for run in runs:
            for first, vision in self._vision_between(run.first, run.stop):
                yield offset + first - run.first, vision
            offset += len(run)

    def _vision_between(self, first: int, stop: int) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        num_before: dict[int, int] = {}  # a turn may have several spans, which share its features in order
        for segment, start, end in self.layout.spans_of(SegmentKind.VISION):
            if start >= stop:
                return
            origin = start - num_before.get(segment.turn, 0)
            num_before[segment.turn] = num_before.get(segment.turn, 0) + segment.num_tokens
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield low, self.vision[segment.turn].rows(low - origin, high - origin)


def _taken(numbers: Sequence[int], runs: Sequence[range]) -> list[int]:
    """The numbers in some ranges of places, one range after the other."""
    return list(chain.from_iterable(numbers[run.start : run.stop] for run in runs))
