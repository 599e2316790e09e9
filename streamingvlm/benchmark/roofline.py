"""What a stream costs at the least: bytes and operations by the model's configuration, ceilings by the machine.

A token that is generated reads every matrix of the language model and the keys and values that it sees: bytes over the
bandwidth. Vision and prefill are matrix products: operations over the rate of a large product, or the bytes of the
weights where those take longer. What is left out is small (norms, rotations, sampling) or to be avoided.
Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from streamingvlm.benchmark.figures import last_minute, rounded
from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.timed_turn import TurnFigures
from streamingvlm.cache.storage import storage_named
from streamingvlm.inference.stats import percentile
from streamingvlm.model.cpu_kernels.linear_layers import OneDnnLinear, supports_onednn
from streamingvlm.model.loading import StreamingModel

_NUM_TRIALS = 10
_PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 256 * 2**20}
# Operations of a query and a key, and of a score and a value, a number each: a product and a sum.
_OPERATIONS_A_PAIR = 4


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at its best: floating-point operations and bytes a second."""

    flop_per_s: float
    bytes_per_s: float


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of some large matrix products, and of some large copies (which read and write each byte)."""
    size, num_bytes = _PRODUCT_SIZE[device.type], _COPY_BYTES[device.type]
    numbers = torch.randn(size, size, device=device, dtype=dtype)
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    product = OneDnnLinear.of(layer).product if supports_onednn(device, dtype) else layer
    source = torch.empty(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        flop_per_s=2 * size**3 / _fastest(lambda: product(numbers), device),
        bytes_per_s=num_bytes / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    times_s = []
    for _ in range(_NUM_TRIALS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def _wait(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Costs:
    """Bytes and operations of a model.

    weight_bytes: of the language model's matrices and its head, read for each token; kv_bytes: of the key and value of
    a token that is seen.
    text_flop, head_flop: of a token that is fed, of one whose logits are asked for; pair_flop: of a token and one that
    it sees.
    patch_flop, merged_flop: of a patch in the vision tower, of the vision token that ``patches_per_token`` patches
    become; vision_pair_flop: of two patches in a block. ``num_full_blocks`` see a whole temporal patch,
    ``num_window_blocks`` no more than ``window_patches``.
    """

    weight_bytes: int
    kv_bytes: int
    text_flop: int
    head_flop: int
    pair_flop: int
    patch_flop: int
    merged_flop: int
    patches_per_token: int
    vision_pair_flop: int
    num_full_blocks: int
    num_window_blocks: int
    window_patches: int

    @classmethod
    def of(cls, model: StreamingModel, cache_dtype: str | None = None) -> "Costs":
        """Count what a model costs, with keys and values kept as ``cache_dtype``."""
        text, attention = model.text_model.config, model.text_model.layers[0].self_attn
        tower, vision = model.hf.model.visual, model.hf.config.vision_config
        num_blocks, window_size = len(tower.blocks), getattr(vision, "window_size", 0)
        full = getattr(vision, "fullatt_block_indexes", range(num_blocks))
        matrices = _products(model.text_model)
        mergers = [part for name, child in tower.named_children() if "merger" in name for part in _products(child)]
        storage = storage_named(cache_dtype, attention.head_dim, model.dtype)
        row_bytes = storage.row_size * storage.row_dtype.itemsize
        return cls(
            weight_bytes=sum(num_bytes(module.weight) for module in [*matrices, model.lm_head]),
            kv_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * row_bytes,
            text_flop=sum(map(_flop, matrices)),
            head_flop=_flop(model.lm_head),
            pair_flop=_OPERATIONS_A_PAIR * text.num_hidden_layers * text.num_attention_heads * attention.head_dim,
            patch_flop=sum(map(_flop, _products(tower.patch_embed) + _products(tower.blocks))),
            merged_flop=sum(map(_flop, mergers)),
            patches_per_token=model.family.merge_size**2,
            vision_pair_flop=_OPERATIONS_A_PAIR * tower.blocks[0].attn.qkv.in_features,
            num_full_blocks=len(full),
            num_window_blocks=num_blocks - len(full),
            window_patches=(window_size // model.family.patch_size) ** 2,
        )

    def token_bytes(self, num_seen: int) -> int:
        """Bytes that are read for a generated token."""
        return self.weight_bytes + self.kv_bytes * num_seen

    def vision_flop(self, grid: tuple[int, int, int]) -> int:
        """Operations of the vision tower for a merged grid (t, h, w)."""
        num_tokens = math.prod(grid)
        num_patches, num_whole = (n * self.patches_per_token for n in (num_tokens, grid[1] * grid[2]))
        seen = self.num_full_blocks * num_whole + self.num_window_blocks * min(num_whole, self.window_patches)
        return num_patches * (self.patch_flop + self.vision_pair_flop * seen) + num_tokens * self.merged_flop

    def prefill_flop(self, num_fed: int, num_seen: int) -> int:
        """Operations of feeding the last ``num_fed`` of ``num_seen`` tokens, and of one token's logits."""
        num_pairs = num_fed * (num_seen - num_fed) + num_fed * (num_fed + 1) // 2
        return self.text_flop * num_fed + self.pair_flop * num_pairs + self.head_flop


def num_bytes(weight: torch.Tensor) -> int:
    """Memory of a weight, of a quantised one as it is stored."""
    if hasattr(weight, "__tensor_flatten__"):
        return sum(num_bytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
    return weight.numel() * weight.element_size()


def _products(module: nn.Module) -> list[nn.Module]:
    """The matrices in a module: its linear layers, and the convolution that makes patches."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv3d)]


def _flop(module: nn.Module) -> int:
    # Of the features, not of the tensor: a quantised one is packed.
    if isinstance(module, nn.Linear):
        return 2 * module.in_features * module.out_features
    return 2 * module.weight.numel()


@dataclass(frozen=True)
class Floor:
    """The least time that a turn and a token of it can take, in seconds."""

    vision_s: float
    prefill_s: float
    token_s: float
    turn_s: float

    @classmethod
    def of(cls, turn: TurnFigures, costs: Costs, ceilings: Ceilings) -> "Floor":
        """Of what was done in a turn; its first token comes from the prefill."""
        vision_s = costs.vision_flop(turn.grid) / ceilings.flop_per_s
        prefill_s = max(
            costs.prefill_flop(turn.num_fed, turn.num_seen) / ceilings.flop_per_s,
            costs.weight_bytes / ceilings.bytes_per_s,
        )
        token_s = costs.token_bytes(turn.num_seen) / ceilings.bytes_per_s
        return cls(vision_s, prefill_s, token_s, vision_s + prefill_s + token_s * max(0, turn.num_tokens - 1))


def roofline_figures(run: ModeRun, costs: Costs, ceilings: Ceilings) -> dict[str, Any]:
    """The floor of a run's last minute, of its median turn, and the share of the measured time that it is."""
    turns = last_minute(run.turns)
    floors = [Floor.of(turn, costs, ceilings) for turn in turns]
    between_s = percentile([s for turn in turns for s in turn.between_tokens_s], 0.5)
    floor = {name: percentile([getattr(f, name) for f in floors], 0.5) for name in Floor.__dataclass_fields__}
    shares = {"turn_share": percentile([f.turn_s / t.latency_s for f, t in zip(floors, turns, strict=True)], 0.5)}
    if between_s:
        shares["token_share"] = floor["token_s"] / between_s
    return {name: rounded(value) for name, value in (floor | shares).items()}
