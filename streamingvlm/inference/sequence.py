"""The tokens of one stream: their host-side state, together with the stream's KVCache.

A sequence tracks ids, layout and positions, and which tokens are *pending*, that is, need a forward pass: *new* tokens,
which have no cached keys and values yet and are always at the end, and *stale* ones, whose cached keys and values must
be recomputed. The last one or two tokens of a reply stay new until the next turn, and are prefilled with it.
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
    """Everything in a sequence except the tensors of its KVCache.

    layout, ids, positions [3, T]: of all tokens; next_position: of the token after them.
    num_cached: number of leading tokens with cached keys and values.
    stale_range: cached tokens that must be recomputed, because tokens before them were dropped or moved.
    vision: features by turn: for pending vision tokens only, or for all under ``recompute``.
    token_uids: a number for each version of a token's key and value, replaced when they are recomputed. An incremental
        snapshot skips the tokens whose number it has already written.
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

    config: the policy; kv: the stream's keys and values; rotation: the model's rotary embedding.
    """

    def __init__(self, config: CacheConfig, kv: KVCache, rotation: Rotation):
        self.config = config
        self.kv = kv
        self._rotation = rotation
        self._num_uids = 0
        self.num_appended = 0
        self.clear()

    def clear(self):
        """Drop all tokens."""
        self.state = SequenceState(CacheLayout(), (), torch.empty(3, 0), 0.0, 0, range(0), {})

    @property
    def state(self) -> SequenceState:
        """The current state. Setting an earlier one drops the tokens since; it is invalid once tokens were evicted."""
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
        """Number of tokens, pending ones included."""
        return len(self.ids)

    @property
    def num_pending(self) -> int:
        """Number of tokens that need a forward pass."""
        return len(self.stale_range) + len(self.ids) - self.kv.num_tokens

    @property
    def positions(self) -> torch.Tensor:
        """Rotary positions of the tokens in the layout, which has no reply in progress; float32 [3, T]."""
        self._update_positions()
        return self._positions

    @property
    def next_position(self) -> float:
        """Position of the token after the last one in the layout."""
        self._update_positions()
        return self._next_position

    def evict(self, plan: EvictionPlan):
        """Drop and move tokens as planned. If the plan moves new tokens (`moves_pending`), prefill them before."""
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
            # range(0): torch.cat needs at least one part.
            parts = [self._positions[:, r.start : r.stop] for r in (range(0), *plan.runs)]
            self._positions = torch.cat(parts, dim=1)
        self.layout = plan.layout
        kept_turns = {segment.turn for segment in self.layout.segments if segment.kind is SegmentKind.VISION}
        self.vision = {turn: vision for turn, vision in self.vision.items() if turn in kept_turns}

    def _mark_stale(self, plan: EvictionPlan):
        """Mark the previous text as stale from its first moved token on; what precedes that has not changed."""
        first, stop = num_in_place(plan.runs), plan.layout.prologue.num_tokens
        self.stale_range = range(min(first, stop, self.stale_range.start if self.stale_range else stop), stop)

    def moves_pending(self, plan: EvictionPlan) -> bool:
        """Return True if the plan puts a new token before a cached one: new tokens can be prefilled at the end only."""
        if self.config.recompute:
            return False
        # A cached token behind a new one: a later run starts before the new tokens.
        reaching_new = dropwhile(lambda run: run.stop <= self.kv.num_tokens, plan.runs)
        return any(run.start < self.kv.num_tokens for run in islice(reaching_new, 1, None))

    def append(self, tokens: Tokens):
        """Append tokens, which are pending."""
        if self._is_contiguous:
            self._has_positions = False
        else:
            new = contiguous_positions(tokens.segments, self._next_position)
            self._positions = torch.cat([self._positions, new], dim=1)
            self._next_position = max(self._next_position, next_position(new))
        self.layout = self.layout.append(tokens.segments)
        self.ids.extend(tokens.ids)
        self.token_uids += self.new_uids(len(tokens))
        self.num_appended += len(tokens)

    def new_uids(self, num_tokens: int) -> list[int]:
        """Return numbers that have not been used in this sequence."""
        self._num_uids += num_tokens
        return list(range(self._num_uids - num_tokens, self._num_uids))

    def attach_vision(self, turn: int, vision: VisionFeatures):
        """Attach the vision features of a turn whose tokens were appended and are all pending."""
        self.vision[turn] = vision

    def commit_reply(self, tokens: Tokens):
        """Replace the ids from `append_token` by ``tokens``: the same ids with their segments, then the reply's end."""
        del self.ids[self.layout.num_tokens :]
        self.append(tokens)

    def prepare_positions(self, num_reply_tokens: int = 0):
        """Rotate the cached keys to their positions, and reserve room for pending tokens and a reply.

        Raises EngineFull if the pool has no room for an unbounded cache or a long question.
        """
        # "native" positions never change while keys are cached; without any, number from 0.
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
        """Compute contiguous positions lazily: they depend on the layout only."""
        if not self._has_positions:
            self._positions = contiguous_positions(self.layout.segments)
            self._next_position = next_position(self._positions)
            self._has_positions = True

    def pending(self, max_tokens: int | None = None) -> list[SequenceSlice]:
        """Return the next pending tokens, at most ``max_tokens``: stale ones first, then new ones."""
        room = len(self.ids) if max_tokens is None else max_tokens
        stale = self.stale_range[:room]
        new = range(self.kv.num_tokens, len(self.ids))[: room - len(stale)]
        return [SequenceSlice.of(self.kv, part.start, part.stop) for part in (stale, new) if part]

    def mark_computed(self, slices: list[SequenceSlice]):
        """Mark slices from `pending` as computed; drop the vision features once no new token is left."""
        for part in slices:
            if part.first == self.kv.num_tokens:
                self.kv.num_tokens = part.stop
            else:
                self.stale_range = range(part.stop, self.stale_range.stop)
                self.token_uids[part.first : part.stop] = self.new_uids(len(part))
        if not self.config.recompute and self.kv.num_tokens == len(self.ids):
            self.vision.clear()

    def append_token(self, token: int):
        """Append a token of the reply. After its forward pass, call `commit_token`."""
        self.ids.append(token)

    def decode_inputs(self) -> tuple[int, int, int, int]:
        """Return the appended token's id, its row of the pool, the first row of the stream, and the sequence length."""
        first, offset = self.kv.extent.start, self.kv.num_tokens
        return self.ids[-1], first + offset, first, offset + 1

    @property
    def decode_position(self) -> float:
        """The position of the appended token: the tokens of a reply have consecutive positions."""
        return self.next_position + self.kv.num_tokens - self.positions.shape[1]

    def commit_token(self):
        """Mark the appended token as cached."""
        self.kv.num_tokens += 1

    def pending_vision(self, slices: list[SequenceSlice]) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield the vision features in ``slices``, each with its offset in the concatenated slices."""
        offset = 0
        for part in slices:
            for first, features in self._vision_between(part.first, part.stop):
                yield offset + first - part.first, features
            offset += len(part)

    def _vision_between(self, first: int, stop: int) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        num_before: dict[int, int] = {}  # by turn: rows of its features that earlier spans took
        for segment, start, end in self.layout.spans_of(SegmentKind.VISION):
            if start >= stop:
                return
            origin = start - num_before.get(segment.turn, 0)
            num_before[segment.turn] = num_before.get(segment.turn, 0) + segment.num_tokens
            low, high = max(first, start), min(stop, end)
            if low < high:
                yield low, self.vision[segment.turn].rows(low - origin, high - origin)


def _select(numbers: Sequence[int], runs: Sequence[range]) -> list[int]:
    """Return the numbers at the indices of the ranges, in their order."""
    return list(chain.from_iterable(numbers[run.start : run.stop] for run in runs))
