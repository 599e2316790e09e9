"""The key and value tensors: one pool for many streams, allocated once, gathered and rotated once per turn.

Keys are stored unrotated. Each turn they are rotated from there into a read buffer, never in place, because repeated
rotation in bfloat16 drifts. Each stream owns a contiguous range of the pool's rows, as long as its windows need. The
rows of a head are contiguous: attention on a CPU reads them in half the time. This file knows the shapes of the model
and nothing else of it.
"""

from collections.abc import Sequence

import torch

from streamingvlm.cache.range_allocator import Extent, RangeAllocator
from streamingvlm.cache.storage import PlainStorage, storage_named
from streamingvlm.device import on_device
from streamingvlm.errors import EngineFull

# A row of the pool that belongs to no stream: padding tokens of a batch are written there.
PADDING_SLOT = 0
_FIRST_ROW = 1


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``x`` [..., T, D] by ``cos`` and ``sin`` [T, D] (RoFormer, halves as in GPT-NeoX)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_into(out: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
    """Write ``rotate(x, cos, sin)`` into ``out`` without a temporary: all keys pass through here each turn."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


class KVPool:
    """Keys and values of all layers of many streams, which share ``num_tokens`` rows.

    keys, values, rotated: [layers, kv heads, rows, row size], in the format of ``storage``.
    is_elastic: grow when the rows run out, instead of raising EngineFull.
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
        self.allocator = RangeAllocator(_FIRST_ROW + num_tokens, first=_FIRST_ROW)
        self.caches: list[KVCache] = []

    @classmethod
    def of(cls, text_config, num_tokens: int, dtype: torch.dtype, device: torch.device, **settings) -> "KVPool":
        """Build the pool for a text model from its configuration."""
        layers, heads, size = _cache_shape(text_config)
        return cls(layers, heads, size, num_tokens, dtype, device, **settings)

    @property
    def num_tokens(self) -> int:
        """Tokens that all streams together can hold."""
        return self.allocator.num_rows - _FIRST_ROW

    @property
    def num_free(self) -> int:
        """Tokens that are not reserved by any stream."""
        return self.allocator.num_free

    @property
    def max_seqlen(self) -> int:
        """Upper bound of the tokens in any stream: the largest capacity, rounded up to a power of two."""
        return 1 << max((cache.capacity for cache in self.caches), default=1).bit_length()

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token in the three buffers."""
        return 3 * self.keys[:, :, 0].numel() * self.keys.element_size()

    def open(self, capacity: int) -> "KVCache":
        """Reserve ``capacity`` tokens for a stream. Raises EngineFull if they are not free."""
        self._ensure_free(capacity)
        extent = self.allocator.allocate(capacity)
        if extent is None:  # enough rows are free, but not in one range
            self._compact()
            extent = self.allocator.allocate(capacity)
        cache = KVCache(self, extent)
        self.caches.append(cache)
        return cache

    def close(self, cache: "KVCache"):
        """Free a stream's tokens."""
        self.caches.remove(cache)
        self.allocator.free(cache.extent)

    def grow(self, cache: "KVCache", capacity: int):
        """Grow a stream to ``capacity`` tokens, in place or at the end. Raises EngineFull if they are not free."""
        self._ensure_free(capacity - cache.capacity)
        grown = self.allocator.grow(cache.extent, capacity)
        if grown is None:
            used = slice(cache.extent.start, cache.extent.start + cache.num_tokens)
            saved = [buffer[:, :, used].clone() for buffer in self._buffers]
            self.allocator.free(cache.extent)
            self._compact()
            grown = self.allocator.allocate(capacity)
            for buffer, rows in zip(self._buffers, saved, strict=True):
                buffer[:, :, grown.start : grown.start + cache.num_tokens] = rows
        cache.extent = grown

    @property
    def _buffers(self) -> tuple[torch.Tensor, ...]:
        return self.keys, self.values, self.rotated

    def _ensure_free(self, num_tokens: int):
        """Grow an elastic pool until ``num_tokens`` are free; raise EngineFull for another."""
        if num_tokens <= self.num_free:
            return
        if not self.is_elastic:
            raise EngineFull(
                f"the engine has room for {self.num_free} more tokens of {self.num_tokens}, but the stream needs "
                f"{num_tokens}; close a stream, give it smaller windows, or give the engine more memory"
            )
        self._enlarge(num_tokens - self.num_free)

    def rotate_(self, rows: slice, cos: torch.Tensor, sin: torch.Tensor):
        """Rotate the keys of ``rows`` by ``cos`` and ``sin`` [T, D] into the read buffer."""
        if isinstance(self.storage, PlainStorage):
            rotate_into(self.rotated[:, :, rows], self.keys[:, :, rows], cos, sin)
            return
        for keys, rotated in zip(self.keys, self.rotated, strict=True):  # one layer at a time: small temporaries
            rotated[:, rows] = self.storage.encode(rotate(self.storage.decode(keys[:, rows]), cos, sin))

    def write_(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, rotated: torch.Tensor, values: torch.Tensor):
        """Write new keys, unrotated and rotated, and values [T, kv heads, D] of a layer to ``rows`` [T]."""
        for buffer, new in ((self.keys, keys), (self.rotated, rotated), (self.values, values)):
            buffer[layer].index_copy_(1, rows, self.storage.encode(new).transpose(0, 1))

    @torch.inference_mode(False)  # inference tensors could not be written outside of inference mode later
    def _enlarge(self, num_tokens: int):
        for name in ("keys", "values", "rotated"):
            setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, 0, 0, num_tokens)))
        self.allocator.num_rows += num_tokens

    def _compact(self):
        """Move all streams to the front, so that the free rows are one range."""
        by_extent = {cache.extent: cache for cache in self.caches}
        for old, new in self.allocator.compact():
            cache = by_extent[old]
            if old != new:
                self._move_rows(old.start, new.start, cache.num_tokens)
            cache.extent = new

    def _move_rows(self, old: int, new: int, num_tokens: int):
        for buffer in self._buffers:
            for layer in buffer:  # one layer at a time: small temporaries
                layer[:, new : new + num_tokens] = layer[:, old : old + num_tokens].clone()


class KVCache:
    """Keys and values of all layers of one stream: a range of the pool's rows, the first ``num_tokens`` of them in use.

    extent: its rows.
    cos, sin: [T, D], the rotation of the cached tokens, followed by that of pending tokens and of the reply to come.
    """

    def __init__(self, pool: KVPool, extent: Extent):
        self.pool = pool
        self.extent = extent
        self.cos = self.sin = pool.storage.decode(pool.keys[0, 0, :0])
        self.num_tokens = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return len(self.extent)

    @property
    def num_bytes(self) -> int:
        """Memory of the three buffers."""
        return self.capacity * self.pool.bytes_per_token

    @property
    def keys(self) -> torch.Tensor:
        """View of the unrotated keys, [layers, kv heads, capacity, row size], the first ``num_tokens`` in use."""
        return self._rows(self.pool.keys)

    @property
    def values(self) -> torch.Tensor:
        """View of the values, shaped as ``keys``."""
        return self._rows(self.pool.values)

    @property
    def rotated(self) -> torch.Tensor:
        """View of the keys rotated to their current positions, shaped as ``keys``."""
        return self._rows(self.pool.rotated)

    def _rows(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[:, :, self.extent.start : self.extent.stop]

    def close(self):
        """Free the rows."""
        self.pool.close(self)

    def clear_(self):
        """Drop all tokens; the rows stay reserved."""
        self.num_tokens = 0

    def reserve_(self, capacity: int, *, is_bounded: bool = False):
        """Grow to at least ``capacity`` tokens. Raises EngineFull if the pool has too few.

        An unbounded cache grows by at least half, because more tokens will follow. A bounded cache grows to exactly
        ``capacity``, because only a question in mid-stream exceeds its bound.
        """
        if capacity > self.capacity:
            self.pool.grow(self, capacity if is_bounded else max(capacity, self.capacity * 3 // 2))

    def gather_(self, runs: Sequence[range]):
        """Keep the tokens in these ranges, in this order. The rotated keys are stale until `rotate_`."""
        num_staying, num_kept = num_in_place(runs), sum(map(len, runs))
        if num_staying < num_kept:
            start = self.extent.start
            moving = [torch.arange(start + run.start, start + run.stop) for run in runs[num_staying > 0 :]]
            rows = on_device(torch.cat(moving), torch.long, self.pool.keys.device)
            for buffer in (self.pool.keys, self.pool.values):
                for layer in buffer:  # one layer at a time: small temporaries
                    layer[:, start + num_staying : start + num_kept] = layer.index_select(1, rows)
        self.num_tokens = num_kept

    def rotate_(self, cos: torch.Tensor, sin: torch.Tensor):
        """Rotate all keys by ``cos`` and ``sin`` [T, D]; rows past the cached tokens are kept for pending tokens."""
        self.cos, self.sin = cos, sin
        rows = slice(self.extent.start, self.extent.start + self.num_tokens)
        self.pool.rotate_(rows, cos[: self.num_tokens], sin[: self.num_tokens])


def num_in_place(runs: Sequence[range]) -> int:
    """Count the leading tokens that stay in place when `KVCache.gather_` keeps ``runs`` (none empty)."""
    return runs[0].stop if runs and runs[0].start == 0 else 0


def bytes_per_token(text_config, dtype: torch.dtype, cache_dtype: str | None = None) -> int:
    """Memory of one token in the pool of a text model with this configuration."""
    layers, heads, size = _cache_shape(text_config)
    storage = storage_named(cache_dtype, size, dtype)
    return 3 * layers * heads * storage.row_size * storage.row_dtype.itemsize


def pool_bytes(num_tokens: int, token_bytes: int) -> int:
    """Memory of a pool that holds ``num_tokens`` of ``token_bytes`` each, with its padding row."""
    return (_FIRST_ROW + num_tokens) * token_bytes


def _cache_shape(text_config) -> tuple[int, int, int]:
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return text_config.num_hidden_layers, text_config.num_key_value_heads, head_size
