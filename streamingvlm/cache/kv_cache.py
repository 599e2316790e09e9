"""The tensors of the caches: one pool for many streams, allocated once, gathered and rotated once a second.

Keys are kept unrotated. Each second they are rotated afresh into a read buffer, never in place: a rotation repeated in
bf16 drifts. A stream has a run of the pool's rows to itself, as long as its windows need; streams of different windows
lie side by side. The rows of a head lie together: on a CPU attention reads them in half of the time. This file knows
nothing of the model but its shapes.
"""

from collections.abc import Sequence

import torch

from streamingvlm.cache.range_allocator import RangeAllocator
from streamingvlm.cache.storage import Plain, storage_named
from streamingvlm.device import on_device
from streamingvlm.errors import EngineFull

# Row of the pool that belongs to no stream: what pads a batch is written there.
PADDING_SLOT = 0
_FIRST_ROW = 1


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``x`` [..., T, D] by ``cos`` and ``sin`` [T, D] (RoFormer, halves as in GPT-NeoX)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_into(out: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Write what ``rotate`` returns into ``out``, without a copy on the way: all keys go through here each second."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


class KVPool:
    """Keys and values of all layers of many streams: ``num_tokens`` rows that the streams share out among them.

    keys, values, rotated: [layers, kv heads, rows, head size], as ``storage`` keeps them.
    is_elastic: it grows where it is too small; otherwise EngineFull is raised.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_size: int,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        cache_dtype: str | None = None,
        is_elastic: bool = False,
    ):
        self.storage = storage_named(cache_dtype, head_size, dtype)
        shape = (num_layers, num_kv_heads, _FIRST_ROW + num_tokens, self.storage.row_size)
        self.keys, self.values, self.rotated = (
            torch.zeros(shape, dtype=self.storage.row_dtype, device=device) for _ in range(3)
        )
        self.is_elastic = is_elastic
        self.extents = RangeAllocator(_FIRST_ROW + num_tokens, first=_FIRST_ROW)
        self.caches: list[KVCache] = []

    @classmethod
    def of(cls, text_config, num_tokens: int, dtype: torch.dtype, device: torch.device, **settings) -> "KVPool":
        """The pool of a text model, by its configuration."""
        layers, heads, size = _cache_shape(text_config)
        return cls(layers, heads, size, num_tokens, dtype, device, **settings)

    @property
    def num_tokens(self) -> int:
        """Tokens that all streams together may hold."""
        return self.extents.num_rows - _FIRST_ROW

    @property
    def num_free(self) -> int:
        """Tokens that no stream has to itself."""
        return self.extents.num_free

    @property
    def longest(self) -> int:
        """Tokens of the largest stream, rounded up to a power of two."""
        return 1 << max((cache.capacity for cache in self.caches), default=1).bit_length()

    @property
    def bytes_per_token(self) -> int:
        """Memory that a token takes in the three buffers."""
        return 3 * self.keys[:, :, 0].numel() * self.keys.element_size()

    def open(self, capacity: int) -> "KVCache":
        """Give a stream ``capacity`` tokens to itself. Raises EngineFull where they are not there."""
        self._see_to(capacity)
        extent = self.extents.take(capacity)
        if extent is None:  # there is room, but in pieces
            self._pack()
            extent = self.extents.take(capacity)
        cache = KVCache(self, extent)
        self.caches.append(cache)
        return cache

    def close(self, cache: "KVCache"):
        """Take a stream's tokens back."""
        self.caches.remove(cache)
        self.extents.release(cache.extent)

    def lengthen(self, cache: "KVCache", capacity: int):
        """Give a stream more tokens, where it lies or behind the others. Raises EngineFull where they are not there."""
        self._see_to(capacity - cache.capacity)
        longer = self.extents.lengthen(cache.extent, capacity)
        if longer is None:
            used = slice(cache.extent.start, cache.extent.start + cache.num_tokens)
            held = [buffer[:, :, used].clone() for buffer in self._buffers]
            self.extents.release(cache.extent)
            self._pack()
            longer = self.extents.take(capacity)
            for buffer, rows in zip(self._buffers, held, strict=True):
                buffer[:, :, longer.start : longer.start + cache.num_tokens] = rows
        cache.extent = longer

    @property
    def _buffers(self) -> tuple[torch.Tensor, ...]:
        return self.keys, self.values, self.rotated

    def _see_to(self, num_tokens: int):
        """Have ``num_tokens`` free."""
        if num_tokens <= self.num_free:
            return
        if not self.is_elastic:
            raise EngineFull(
                f"the engine has room for {self.num_free} more tokens of {self.num_tokens}, but the stream needs "
                f"{num_tokens}; close a stream, give it smaller windows, or give the engine more memory"
            )
        self._grow(num_tokens - self.num_free)

    def rotate_(self, rows: slice, cos: torch.Tensor, sin: torch.Tensor):
        """Rotate the keys of some rows by ``cos`` and ``sin`` [T, D] into the read buffer."""
        if isinstance(self.storage, Plain):
            rotate_into(self.rotated[:, :, rows], self.keys[:, :, rows], cos, sin)
            return
        for keys, rotated in zip(self.keys, self.rotated, strict=True):  # a layer at a time: the copy stays small
            rotated[:, rows] = self.storage.encode(rotate(self.storage.decode(keys[:, rows]), cos, sin))

    def write_(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, rotated: torch.Tensor, values: torch.Tensor):
        """Write new keys, unrotated and rotated, and values [T, kv heads, D] of a layer to ``rows`` [T]."""
        for buffer, new in ((self.keys, keys), (self.rotated, rotated), (self.values, values)):
            buffer[layer].index_copy_(1, rows, self.storage.encode(new).transpose(0, 1))

    @torch.inference_mode(False)  # or what grew inside a turn could not be written outside of one
    def _grow(self, num_tokens: int):
        for name in ("keys", "values", "rotated"):
            setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, 0, 0, num_tokens)))
        self.extents.num_rows += num_tokens

    def _pack(self):
        """Move all streams to the front, so that the free rows are one run."""
        by_extent = {cache.extent: cache for cache in self.caches}
        for was, now in self.extents.packed():
            cache = by_extent[was]
            if was != now:
                self._move(was.start, now.start, cache.num_tokens)
            cache.extent = now

    def _move(self, was: int, now: int, num_tokens: int):
        for buffer in self._buffers:
            for layer in buffer:  # a layer at a time: the copy that an overlap needs stays small
                layer[:, now : now + num_tokens] = layer[:, was : was + num_tokens].clone()


class KVCache:
    """Keys and values of all layers of one stream: a run of a pool's rows, of which ``num_tokens`` are in use.

    extent: its rows; cos, sin: [T, D] the rotation of the tokens in sight, cached or about to be, and of a reply.
    """

    def __init__(self, pool: KVPool, extent):
        self.pool = pool
        self.extent = extent
        self.cos = self.sin = pool.storage.decode(pool.keys[0, 0, :0])
        self.num_tokens = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return len(self.extent)

    @property
    def num_bytes(self) -> int:
        """Memory of the three buffers."""
        return self.capacity * self.pool.bytes_per_token

    @property
    def keys(self) -> torch.Tensor:
        """The unrotated keys, [layers, kv heads, capacity, head size]: a view, its first ``num_tokens`` in use."""
        return self._rows(self.pool.keys)

    @property
    def values(self) -> torch.Tensor:
        """The values, as ``keys``."""
        return self._rows(self.pool.values)

    @property
    def rotated(self) -> torch.Tensor:
        """The keys, rotated to where they stand now, as ``keys``."""
        return self._rows(self.pool.rotated)

    def _rows(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[:, :, self.extent.start : self.extent.stop]

    def close(self):
        """Give the rows back to the pool."""
        self.pool.close(self)

    def clear_(self):
        """Forget all tokens; the memory stays."""
        self.num_tokens = 0

    def reserve_(self, capacity: int, *, is_bounded: bool = False):
        """Grow to at least ``capacity`` tokens. Raises EngineFull where the pool has not as many.

        Without a bound by half again at least, as more will come; a bounded cache, which only a question in mid-stream
        brings here, by what is missing.
        """
        if capacity > self.capacity:
            self.pool.lengthen(self, capacity if is_bounded else max(capacity, self.capacity * 3 // 2))

    def gather_(self, runs: Sequence[range]):
        """Keep the tokens in these ranges, in that order; drop the others. The rotated keys wait for ``rotate_``."""
        num_staying, num_kept = num_in_place(runs), sum(map(len, runs))
        if num_staying < num_kept:
            start = self.extent.start
            moving = [torch.arange(start + run.start, start + run.stop) for run in runs[num_staying > 0 :]]
            rows = on_device(torch.cat(moving), torch.long, self.pool.keys.device)
            for buffer in (self.pool.keys, self.pool.values):
                for layer in buffer:  # a layer at a time: the copy stays small
                    layer[:, start + num_staying : start + num_kept] = layer.index_select(1, rows)
        self.num_tokens = num_kept

    def rotate_(self, cos: torch.Tensor, sin: torch.Tensor):
        """Rotate all keys by ``cos`` and ``sin`` [T, D], whose rows past the cached tokens serve those to come."""
        self.cos, self.sin = cos, sin
        rows = slice(self.extent.start, self.extent.start + self.num_tokens)
        self.pool.rotate_(rows, cos[: self.num_tokens], sin[: self.num_tokens])


def num_in_place(runs: Sequence[range]) -> int:
    """How many of the first tokens stay where they are when those in ``runs``, none of them empty, are kept."""
    return runs[0].stop if runs and runs[0].start == 0 else 0


def bytes_per_token(text_config, dtype: torch.dtype, cache_dtype: str | None = None) -> int:
    """Memory that a token takes in a pool of a text model, by its configuration."""
    layers, heads, size = _cache_shape(text_config)
    storage = storage_named(cache_dtype, size, dtype)
    return 3 * layers * heads * storage.row_size * storage.row_dtype.itemsize


def _cache_shape(text_config) -> tuple[int, int, int]:
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return text_config.num_hidden_layers, text_config.num_key_value_heads, head_size
