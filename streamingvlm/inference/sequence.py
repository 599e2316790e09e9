"""One stream's tokens as the host plans them, with the KVCache that holds their keys and values.

A sequence knows ids, layout and positions, and which tokens still need a forward pass. Such *pending* tokens stand at
the end: the last one or two of a reply are prefilled together with the next turn. Tokens in the *stale range* have
keys, but these are to be computed again. The forward passes, which batch many streams, are in model_runner.py.
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
from streamingvlm.model.rotation import Rotation
from streamingvlm.model.vision import VisionFeatures
from streamingvlm.turns import Tokens


@dataclass(frozen=True)
class SequenceState:
    """The host's part of a sequence; together with the tensors of its KVCache it is complete.

    layout, ids, positions [3, T]: the tokens; next_position: the position of the token after them.
    num_cached: the first tokens, which have keys and values.
    stale_range: tokens whose keys and values are to be computed again, as words have joined the previous text.
    vision: features by turn, of vision tokens that are still pending; under ``recompute``, of all vision tokens.
    token_uids: one number a token; the key and value behind a number never change.
    """

    layout: CacheLayout
    ids: tuple[int, ...]
    positions: torch.Tensor
    next_position: float
    num_cached: int
    stale_range: range
    vision: dict[int, VisionFeatures]
    token_uids: tuple[int, ...] = ()


class TokenSequence:
    """The tokens of one stream under a cache policy.

    config: the policy; kv: the stream's keys and values; rotation: the rotary angles of the model.
    """

    def __init__(self, config: CacheConfig, kv: KVCache, rotation: Rotation):
        self.config = config
        self.kv = kv
        self._rotation = rotation
        self._num_uids = 0
        self.clear()

    def clear(self):
        """Drop all tokens."""
        self.state = SequenceState(CacheLayout(), (), torch.empty(3, 0), 0.0, 0, range(0), {})

    @property
    def state(self) -> SequenceState:
        """The host's part as it is now. Setting an earlier state drops what was appended since: the end of a fork."""
        return SequenceState(
            layout=self.layout,
            ids=tuple(self.ids),
            positions=self.positions,
            next_position=self.next_position,
            num_cached=self.kv.num_tokens,
            stale_range=self.stale_range,
            vision=dict(self.vision),
            token_uids=tuple(self.token_uids),
        )

    @state.setter
    def state(self, state: SequenceState):
        self.layout = state.layout
        self.ids = list(state.ids)
        self._positions, self._next_position, self._has_positions = state.positions, state.next_position, True
        self.kv.num_tokens = state.num_cached
        self.stale_range = state.stale_range
        self.vision = dict(state.vision)
        self.token_uids = list(state.token_uids)

    @property
    def num_tokens(self) -> int:
        """Tokens, pending ones included."""
        return len(self.ids)

    @property
    def num_pending(self) -> int:
        """Tokens that need a forward pass: stale and pending ones."""
        return len(self.stale_range) + len(self.ids) - self.kv.num_tokens

    @property
    def positions(self) -> torch.Tensor:
        """Rotary positions of the tokens, float32 [3, T]."""
        self._update_positions()
        return self._positions

    @property
    def next_position(self) -> float:
        """The position of the token that comes next."""
        self._update_positions()
        return self._next_position

    def evict(self, plan: EvictionPlan):
        """Drop and move tokens as planned. No pending token may stand before a cached one afterwards."""
        assert not self.moves_pending(plan), "pending tokens must be prefilled before they are moved"
        if self.config.recompute:
            self.kv.clear_()
            self.token_uids = self.new_uids(len(self.token_uids))
        else:
            num_cached = self.kv.num_tokens
            self.kv.gather_([range(r.start, min(r.stop, num_cached)) for r in plan.runs if r.start < num_cached])
            if self.config.recompute_text:
                self._mark_stale(plan)
        self.ids = _select(self.ids, plan.runs)
        self.token_uids = _select(self.token_uids, plan.runs)
        if self._is_contiguous:
            self._has_positions = False
        else:
            parts = [self._positions[:, r.start : r.stop] for r in (range(0), *plan.runs)]
            self._positions = torch.cat(parts, dim=1)
        self.layout = plan.layout
        kept_turns = {segment.turn for segment in self.layout.segments if segment.kind is SegmentKind.VISION}
        self.vision = {turn: vision for turn, vision in self.vision.items() if turn in kept_turns}

    def _mark_stale(self, plan: EvictionPlan):
        """Mark the previous text from the first moved token on; those before it see the same tokens as ever."""
        first, stop = num_in_place(plan.runs), plan.layout.prologue.num_tokens
        self.stale_range = range(min(first, stop, self.stale_range.start if self.stale_range else stop), stop)

    def moves_pending(self, plan: EvictionPlan) -> bool:
        """Whether a pending token would no longer stand at the end, where alone it can be prefilled."""
        if self.config.recompute:
            return False
        reaching_pending = dropwhile(lambda run: run.stop <= self.kv.num_tokens, plan.runs)
        return any(run.start < self.kv.num_tokens for run in islice(reaching_pending, 1, None))

    def append(self, tokens: Tokens):
        """Append tokens; they are pending."""
        if self._is_contiguous:
            self._has_positions = False
        else:
            new = contiguous_positions(tokens.segments, self._next_position)
            self._positions = torch.cat([self._positions, new], dim=1)
            self._next_position = max(self._next_position, next_position(new))
        self.layout = self.layout.append(tokens.segments)
        self.ids.extend(tokens.ids)
        self.token_uids += self.new_uids(len(tokens))

    def new_uids(self, num_tokens: int) -> list[int]:
        """Return numbers that no token has had."""
        self._num_uids += num_tokens
        return list(range(self._num_uids - num_tokens, self._num_uids))

    def attach_vision(self, turn: int, vision: VisionFeatures):
        """Attach the features of a turn whose tokens were appended and are all pending."""
        self.vision[turn] = vision

    def replace_reply(self, tokens: Tokens):
        """Replace what `append_token` added by the same tokens with their segments, and with what ends the reply."""
        del self.ids[self.layout.num_tokens :]
        self.append(tokens)

    def prepare_positions(self, num_reply_tokens: int = 0):
        """Rotate the cached keys to the tokens' positions, and reserve room for the tokens and for a reply.

        Raises EngineFull if an unbounded cache, or a long question, outgrows the memory.
        """
        # Native positions are fixed by the keys computed with them: while there are none, all are free.
        if self.kv.num_tokens == 0:
            self._has_positions = False
        self.kv.reserve_(len(self.ids) + num_reply_tokens, is_bounded=self.config.is_bounded)
        reply = self.next_position + torch.arange(num_reply_tokens)
        positions = torch.cat([self.positions, reply.expand(3, -1)], dim=1)
        self.kv.rotate_(*self._rotation(on_device(positions, torch.float32, self.kv.keys.device)))

    @property
    def _is_contiguous(self) -> bool:
        return self.config.positions == "contiguous"

    def _update_positions(self):
        """Contiguous positions are a function of the layout, computed once it is as the model will see it."""
        if not self._has_positions:
            self._positions = contiguous_positions(self.layout.segments)
            self._next_position = next_position(self._positions)
            self._has_positions = True

    def pending(self, max_tokens: int | None = None) -> list[SequenceSlice]:
        """Return the next tokens to prefill, at most ``max_tokens``: the stale range first, then what is pending."""
        room = len(self.ids) if max_tokens is None else max_tokens
        stale = self.stale_range[:room]
        pending = range(self.kv.num_tokens, len(self.ids))[: room - len(stale)]
        return [SequenceSlice.of(self.kv, part.start, part.stop) for part in (stale, pending) if part]

    def mark_computed(self, slices: list[SequenceSlice]):
        """Count slices that `pending` returned as computed; drop vision features that are no longer needed."""
        for part in slices:
            if part.first == self.kv.num_tokens:
                self.kv.num_tokens = part.stop
            else:
                self.stale_range = range(part.stop, self.stale_range.stop)
                self.token_uids[part.first : part.stop] = self.new_uids(len(part))
        if not self.config.recompute and self.kv.num_tokens == len(self.ids):
            self.vision.clear()

    def append_token(self, token: int):
        """Append a token of the reply; `commit_token` once its key is in the cache."""
        self.ids.append(token)

    def decode_inputs(self) -> tuple[int, int, int, int]:
        """Return the appended token's id, its slot in the pool, the stream's first slot, and its sequence length."""
        first, place = self.kv.extent.start, self.kv.num_tokens
        return self.ids[-1], first + place, first, place + 1

    @property
    def decode_position(self) -> float:
        """The position of the appended token: tokens of a reply follow each other."""
        return self.next_position + self.kv.num_tokens - self.positions.shape[1]

    def commit_token(self):
        """Count the appended token as cached."""
        self.kv.num_tokens += 1

    def pending_vision(self, slices: list[SequenceSlice]) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield each part of a vision span in ``slices``: its offset, counted over the slices, and its features."""
        offset = 0
        for part in slices:
            for first, features in self._vision_between(part.first, part.stop):
                yield offset + first - part.first, features
            offset += len(part)

    def _vision_between(self, first: int, stop: int) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        num_before: dict[int, int] = {}  # the spans of a turn share its features, in order
        for segment, start, end in self.layout.spans_of(SegmentKind.VISION):
            if start >= stop:
                return
            origin = start - num_before.get(segment.turn, 0)
            num_before[segment.turn] = num_before.get(segment.turn, 0) + segment.num_tokens
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield low, self.vision[segment.turn].rows(low - origin, high - origin)


def _select(numbers: Sequence[int], runs: Sequence[range]) -> list[int]:
    """Return the numbers in the ranges, one range after the other."""
    return list(chain.from_iterable(numbers[run.start : run.stop] for run in runs))
