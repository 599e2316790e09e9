"""The language model over one stream's cache: what was fed, what is kept, what comes next.

The host's picture (layout, ids, positions) and the device's tensors (KVCache) are held in step here. Some tokens of the
picture have no keys yet: the last one or two of a reply are fed together with the next turn (they are *pending*).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamingvlm.cache.eviction import Eviction
from streamingvlm.cache.kv_cache import KVCache
from streamingvlm.cache.layout import CacheLayout, Kind
from streamingvlm.cache.positions import contiguous_positions, next_position
from streamingvlm.config import CacheConfig
from streamingvlm.model.vision import VisionFeatures, deepstack_inputs
from streamingvlm.turns import Tokens

# Room of a cache whose policy has no bound, before it first grows.
_FIRST_CAPACITY_TOKENS = 4096

# What a fork puts back: the host's picture whole. Of the tensors it is enough to count the tokens as before.
_PICTURE = ("ids", "serials", "layout", "positions", "next_position", "vision", "num_unread", "max_reply_tokens")
_COUNTS = ("num_tokens", "cos", "sin")


class StreamingDecoder:
    """Feeds tokens to the text model and keeps the cache that a policy asks for.

    model: a StreamingModel whose text attention is the streaming one; capacity: tokens to allocate, None to grow;
    max_reply_tokens: the most tokens fed one by one after a prefill; it may be set anew before one.
    """

    def __init__(self, model, config: CacheConfig, *, capacity: int | None, max_reply_tokens: int):
        self.model = model
        self.config = config
        self.max_reply_tokens = max_reply_tokens
        text = model.text_model.config
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.kv = KVCache(
            text.num_hidden_layers,
            text.num_key_value_heads,
            head_size,
            capacity or _FIRST_CAPACITY_TOKENS,
            model.dtype,
            model.device,
        )
        ones = torch.ones(1, 1, head_size, dtype=model.dtype, device=model.device)
        self._identity_rotation = (ones, torch.zeros_like(ones))
        self._num_serials = 0
        self.clear_()

    def clear_(self):
        """Forget the stream."""
        self.kv.clear_()
        self.layout = CacheLayout()
        self.ids: list[int] = []
        # One number a token of the layout, never given twice: under the same number stand the same key and value.
        self.serials: list[int] = []
        self.positions = torch.empty(3, 0)
        self.next_position = 0.0
        self.vision: dict[int, VisionFeatures] = {}
        self.num_unread = 0  # first tokens whose keys are to be made anew: words have joined the previous text

    @property
    def num_tokens(self) -> int:
        """Tokens in sight, pending ones included."""
        return len(self.ids)

    def restore_(
        self, layout: CacheLayout, ids: list[int], positions: torch.Tensor, next_position: float, *, num_unread: int
    ):
        """Take up the picture of another stream; the keys, the values and what is seen are the caller's to put back."""
        self.layout, self.ids, self.positions = layout, ids, positions
        self.serials = list(self._new_serials(len(ids)))
        self.next_position, self.num_unread = next_position, num_unread

    def evict_(self, eviction: Eviction):
        """Drop and move what the policy decided."""
        if self.config.recompute:
            self.kv.clear_()
            self._renew_serials_(len(self.serials))
        else:
            if self._moves_pending(eviction):
                self.prefill_()
            self.kv.gather_([place for place in eviction.index if place < self.kv.num_tokens])
            if self.config.reread_text and eviction.layout.prologue != self.layout.prologue:
                self.num_unread = eviction.layout.prologue.num_tokens
        self.ids = [self.ids[place] for place in eviction.index]
        self.serials = [self.serials[place] for place in eviction.index]
        self.positions = self.positions[:, eviction.index]
        self.layout = eviction.layout
        turns_in_sight = {segment.turn for segment in self.layout.segments if segment.kind is Kind.VISION}
        self.vision = {turn: vision for turn, vision in self.vision.items() if turn in turns_in_sight}

    def extend_(self, tokens: Tokens):
        """Append tokens; they wait for ``prefill_``."""
        self._append_positions(tokens)
        self.layout = self.layout.append(tokens.segments)
        self.ids.extend(tokens.ids)
        self.serials.extend(self._new_serials(len(tokens)))

    def see_(self, turn: int, vision: VisionFeatures):
        """Give what is seen in a turn whose tokens were appended; its vision tokens are all pending."""
        self.vision[turn] = vision

    def prefill_(self) -> torch.Tensor:
        """Feed all pending tokens and return the logits [V] of what comes next."""
        self._number_and_rotate()
        self._reread()
        logits = self._feed_pending()
        if not self.config.recompute:
            self.vision.clear()
        return logits

    def speak_(self, token: int) -> torch.Tensor:
        """Feed one token of the reply; return the logits [V] after it."""
        self.ids.append(token)
        hidden = self._embed([token])
        rotation = self.kv.rotation(1)
        # The text model's own forward would make a mask, an identity rotation and an output object for every token:
        # a fifth of the time of a small model. One token needs none of them.
        for layer in self.model.text_model.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=self._identity_rotation,
                past_key_values=self.kv,
                use_cache=True,
                query_rotation=rotation,
            )
        self.kv.advance_(1)
        return self.model.logits(self.model.text_model.norm(hidden)[:, -1])[0]

    def hear_(self, said: Tokens, end: Tokens):
        """Take in a reply that is given: ``said`` is fed as if it had been spoken, its ``end`` waits as then."""
        self.extend_(said)
        try:
            self.prefill_()
        finally:
            self.extend_(end)

    def close_(self, tokens: Tokens):
        """Replace the loose tokens of the reply by the same tokens with their segments."""
        del self.ids[self.layout.num_tokens :]
        self.extend_(tokens)

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Feed what you like inside the block: at its end the stream stands where it stood before.

        What is fed is written past the cached tokens, where the stream itself writes next, so that nothing is copied
        but the host's picture. Only between turns, and nothing may be evicted inside.
        """
        picture = {name: getattr(self, name) for name in _PICTURE}
        counts = {name: getattr(self.kv, name) for name in _COUNTS}
        self.ids, self.serials, self.vision = list(self.ids), list(self.serials), dict(self.vision)
        try:
            yield
        finally:
            for owner, values in ((self, picture), (self.kv, counts)):
                for name, value in values.items():
                    setattr(owner, name, value)

    def _new_serials(self, num_tokens: int) -> range:
        self._num_serials += num_tokens
        return range(self._num_serials - num_tokens, self._num_serials)

    def _renew_serials_(self, num_tokens: int):
        """Give the first tokens other numbers: their keys and values are made anew."""
        self.serials[:num_tokens] = self._new_serials(num_tokens)

    def _moves_pending(self, eviction: Eviction) -> bool:
        """Whether a token that has no keys yet would no longer stand at the end, where it can still be fed."""
        pending = [place >= self.kv.num_tokens for place in eviction.index]
        return any(pending) and pending != sorted(pending)

    def _append_positions(self, tokens: Tokens):
        new = contiguous_positions(tokens.segments, self.next_position)
        self.positions = torch.cat([self.positions, new], dim=1)
        self.next_position = max(self.next_position, next_position(new))

    def _number_and_rotate(self):
        """Number what is in sight, rotate its keys to match, and make ready the rotation of the reply."""
        # Native positions are fixed by the keys made with them: while there are none, all are free.
        if self.config.positions == "contiguous" or self.kv.num_tokens == 0:
            self.positions = contiguous_positions(self.layout.segments)
            self.next_position = next_position(self.positions)
        reply = self.next_position + torch.arange(self.max_reply_tokens).expand(3, -1)
        places = torch.cat([self.positions, reply], dim=1).to(self.model.device)
        self.kv.reserve_(places.shape[1], is_bounded=self.config.is_bounded)
        like = torch.empty(0, dtype=self.model.dtype, device=self.model.device)
        cos, sin = self.model.text_model.rotary_emb(like, places[:, None])
        self.kv.rotate_(cos[0], sin[0])

    def _reread(self):
        """Make the keys of the prologue and the previous text anew, as if nothing came after them."""
        num_tokens, self.num_unread = self.num_unread, 0
        if num_tokens == 0:
            return
        self._renew_serials_(num_tokens)
        num_cached = self.kv.num_tokens
        self.kv.clear_()
        self._feed(self._embed(self.ids[:num_tokens]))
        self.kv.num_tokens = num_cached

    def _feed_pending(self) -> torch.Tensor:
        """Run the text model over all tokens without keys; return the logits [V] after the last."""
        embeds = self._embed(self.ids[self.kv.num_tokens :])
        is_vision, seen = self._pending_vision()
        if seen:
            embeds[is_vision] = torch.cat([vision.embeddings for vision in seen])
        levels = zip(*(vision.deepstack for vision in seen), strict=True)
        hidden = self._feed(embeds, **deepstack_inputs(is_vision, [torch.cat(level) for level in levels]))
        return self.model.logits(hidden[:, -1])[0]

    def _feed(self, embeds: torch.Tensor, **deepstack) -> torch.Tensor:
        """Run the text model over embeddings [1, T, D] that follow the cached tokens; return its last states."""
        num_new = embeds.shape[1]
        # At position 0 the stock rotation is the identity: the cache and the attention rotate instead.
        hidden = self.model.text_model(
            inputs_embeds=embeds,
            position_ids=torch.zeros(3, 1, num_new, dtype=torch.long, device=self.model.device),
            past_key_values=self.kv,
            use_cache=True,
            query_rotation=self.kv.rotation(num_new),
            **deepstack,
        ).last_hidden_state
        self.kv.advance_(num_new)
        return hidden

    def _pending_vision(self) -> tuple[torch.Tensor, list[VisionFeatures]]:
        """Where the tokens without keys are vision, [1, T], and what is seen there, turn by turn."""
        start = self.kv.num_tokens
        is_vision = torch.zeros(1, len(self.ids) - start, dtype=torch.bool)
        turns: dict[int, None] = {}  # in order, each once: a turn may have several spans
        for span in self.layout.spans():
            if span.segment.kind is Kind.VISION and span.start >= start:
                is_vision[0, span.start - start : span.stop - start] = True
                turns[span.segment.turn] = None
        return is_vision.to(self.model.device), [self.vision[turn] for turn in turns]

    def _embed(self, ids: list[int]) -> torch.Tensor:
        return self.model.text_model.embed_tokens(torch.tensor([ids], device=self.model.device))
