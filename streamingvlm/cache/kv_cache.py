"""The tensors of the cache: allocated once, gathered once a second, rotated once a second.

Keys are kept unrotated. Each second they are rotated afresh into a read buffer, never in place: a rotation repeated in
bf16 drifts. The object stands where transformers expects a cache, through the one method that its layers call
(``update``); it knows nothing of the model but its shapes.
"""

from collections.abc import Sequence

import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``x`` [..., T, D] by ``cos`` and ``sin`` [T, D] (RoFormer, halves as in GPT-NeoX)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class KVCache:
    """Keys and values of all layers of one stream, at most ``capacity`` tokens.

    keys, values, rotated: [layers, kv heads, capacity, head size]; the first ``num_tokens`` places are in use.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (num_layers, num_kv_heads, capacity, head_size)
        self.keys, self.values, self.rotated = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
        self.cos = torch.empty(0, head_size, dtype=dtype, device=device)
        self.sin = torch.empty_like(self.cos)
        self.num_tokens = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of the three buffers."""
        return 3 * self.keys.numel() * self.keys.element_size()

    def clear_(self):
        """Forget all tokens; the memory stays."""
        self.num_tokens = 0

    def reserve_(self, capacity: int, *, is_bounded: bool = False):
        """Grow to at least ``capacity`` tokens.

        Without a bound by half again at least, as more will come; a bounded cache, which only a question in mid-stream
        brings here, by what is missing.
        """
        if capacity <= self.capacity:
            return
        extra = (capacity if is_bounded else max(capacity, self.capacity * 3 // 2)) - self.capacity
        for name in ("keys", "values", "rotated"):
            setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, 0, 0, extra)))

    def gather_(self, index: Sequence[int]):
        """Keep the tokens at ``index``, in that order; drop the others. The rotated keys wait for ``rotate_``."""
        if list(index) != list(range(self.num_tokens)):
            places = torch.as_tensor(index, dtype=torch.long, device=self.keys.device)
            for layer in range(self.keys.shape[0]):
                for buffer in (self.keys[layer], self.values[layer]):
                    buffer[:, : len(index)] = buffer.index_select(1, places)
        self.num_tokens = len(index)

    def rotate_(self, cos: torch.Tensor, sin: torch.Tensor):
        """Rotate all keys by ``cos`` and ``sin`` [T, D], whose rows past the cached tokens serve those to come."""
        self.cos, self.sin = cos, sin
        used = slice(0, self.num_tokens)
        self.rotated[:, :, used] = rotate(self.keys[:, :, used], cos[used], sin[used])

    def rotation(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``cos`` and ``sin`` [num_tokens, D] of the tokens that come next."""
        coming = slice(self.num_tokens, self.num_tokens + num_tokens)
        return self.cos[coming], self.sin[coming]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys (unrotated) and values [1, kv heads, T, D]; return all, the keys rotated.

        The tokens count as cached only after ``advance_``, when every layer has written them.
        """
        start, stop = self.num_tokens, self.num_tokens + key_states.shape[2]
        assert stop <= self.capacity, f"{stop} tokens in a cache of {self.capacity}"
        self.keys[layer_idx, :, start:stop] = key_states[0]
        self.values[layer_idx, :, start:stop] = value_states[0]
        self.rotated[layer_idx, :, start:stop] = rotate(key_states[0], *self.rotation(stop - start))
        return self.rotated[layer_idx : layer_idx + 1, :, :stop], self.values[layer_idx : layer_idx + 1, :, :stop]

    def advance_(self, num_tokens: int):
        """Count ``num_tokens`` more as cached."""
        self.num_tokens += num_tokens
