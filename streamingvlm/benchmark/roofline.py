"""The roofline of a stream: lower bounds on its times, from the model's configuration and the machine's peak rates.

Decoding a token is memory-bound: it reads every matrix of the language model, and the keys and values of its context.
Vision and prefill are compute-bound matrix products; prefill also takes at least one read of the weights. Norms,
rotary embedding and sampling are small and not counted; neither is overhead that an implementation could avoid.
Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from streamingvlm.benchmark.mode_summary import last_minute, six_digits
from streamingvlm.benchmark.modes import ModeRun
from streamingvlm.benchmark.timed_turn import TurnMetrics
from streamingvlm.cache.storage import storage_named
from streamingvlm.inference.stats import percentile
from streamingvlm.model.cpu_kernels.linear_layers import OneDnnLinear, supports_onednn
from streamingvlm.model.loading import StreamingModel

_NUM_TRIALS = 10
_MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 256 * 2**20}
# A query-key pair costs a multiply and an add per channel in q·k, and again in score·v.
_FLOP_PER_PAIR = 4


@dataclass(frozen=True)
class Ceilings:
    """The measured peak rates of a machine: floating-point operations and bytes per second."""

    flop_per_s: float
    bytes_per_s: float


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the fastest of several large matrix products, and of several large copies (bytes read plus written)."""
    size, num_bytes = _MATMUL_SIZE[device.type], _COPY_BYTES[device.type]
    operand = torch.randn(size, size, device=device, dtype=dtype)
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    matmul = OneDnnLinear.of(layer).product if supports_onednn(device, dtype) else layer
    source = torch.empty(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        flop_per_s=2 * size**3 / _fastest(lambda: matmul(operand), device),
        bytes_per_s=num_bytes / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    times_s = []
    for _ in range(_NUM_TRIALS):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def _synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Costs:
    """Bytes and floating-point operations of a model.

    weight_bytes: the matrices of the language model and its head, read once per decoded token.
    kv_bytes: the key and value of one token of the context, in all layers.
    text_flop, head_flop: of one prefilled token, and of its logits. pair_flop: of one query-key pair, in all layers.
    patch_flop: of one patch in the vision tower. merged_flop: of merging ``patches_per_token`` patches into one vision
    token. vision_pair_flop: of two patches that attend to each other in one block.
    num_full_blocks: vision blocks that attend to a whole temporal patch. num_window_blocks: vision blocks that attend
    to at most ``window_patches``.
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
        """Count the costs of a model whose keys and values are stored as ``cache_dtype``."""
        text, attention = model.text_model.config, model.text_model.layers[0].self_attn
        tower, vision = model.hf.model.visual, model.hf.config.vision_config
        num_blocks, window_size = len(tower.blocks), getattr(vision, "window_size", 0)
        full = getattr(vision, "fullatt_block_indexes", range(num_blocks))
        matmuls = _matmuls(model.text_model)
        mergers = [part for name, child in tower.named_children() if "merger" in name for part in _matmuls(child)]
        storage = storage_named(cache_dtype, attention.head_dim, model.dtype)
        row_bytes = storage.row_size * storage.row_dtype.itemsize
        return cls(
            weight_bytes=sum(num_bytes(module.weight) for module in [*matmuls, model.lm_head]),
            kv_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * row_bytes,
            text_flop=sum(map(_flop, matmuls)),
            head_flop=_flop(model.lm_head),
            pair_flop=_FLOP_PER_PAIR * text.num_hidden_layers * text.num_attention_heads * attention.head_dim,
            patch_flop=sum(map(_flop, _matmuls(tower.patch_embed) + _matmuls(tower.blocks))),
            merged_flop=sum(map(_flop, mergers)),
            patches_per_token=model.family.merge_size**2,
            vision_pair_flop=_FLOP_PER_PAIR * tower.blocks[0].attn.qkv.in_features,
            num_full_blocks=len(full),
            num_window_blocks=num_blocks - len(full),
            window_patches=(window_size // model.family.patch_size) ** 2,
        )

    def token_bytes(self, num_context: int) -> int:
        """Return the bytes read to decode one token with ``num_context`` tokens in the cache."""
        return self.weight_bytes + self.kv_bytes * num_context

    def vision_flop(self, grid: tuple[int, int, int]) -> int:
        """Return the operations of the vision tower for a merged grid (t, h, w)."""
        num_tokens = math.prod(grid)
        num_patches, frame_patches = (n * self.patches_per_token for n in (num_tokens, grid[1] * grid[2]))
        pairs = self.num_full_blocks * frame_patches + self.num_window_blocks * min(frame_patches, self.window_patches)
        return num_patches * (self.patch_flop + self.vision_pair_flop * pairs) + num_tokens * self.merged_flop

    def prefill_flop(self, num_new: int, num_context: int) -> int:
        """Return the operations to prefill the last ``num_new`` of ``num_context`` tokens, and to compute one token's
        logits."""
        num_pairs = num_new * (num_context - num_new) + num_new * (num_new + 1) // 2
        return self.text_flop * num_new + self.pair_flop * num_pairs + self.head_flop


def num_bytes(weight: torch.Tensor) -> int:
    """Return the memory of a weight; of a quantized weight, its packed data and scales."""
    if hasattr(weight, "__tensor_flatten__"):
        return sum(num_bytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])
    return weight.numel() * weight.element_size()


def _matmuls(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module that are matrix products: linear layers, and the patch convolution."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv3d)]


def _flop(module: nn.Module) -> int:
    # From the layer, not from the shape of its weight: quantized weights are packed.
    if isinstance(module, nn.Linear):
        return 2 * module.in_features * module.out_features
    return 2 * module.weight.numel()


@dataclass(frozen=True)
class LowerBound:
    """The least time that a turn and each of its decoded tokens can take, in seconds."""

    vision_s: float
    prefill_s: float
    token_s: float
    turn_s: float

    @classmethod
    def of(cls, turn: TurnMetrics, costs: Costs, ceilings: Ceilings) -> "LowerBound":
        """Return the bound for the work of a turn; the first token of a reply comes from the prefill."""
        vision_s = costs.vision_flop(turn.grid) / ceilings.flop_per_s
        prefill_s = max(
            costs.prefill_flop(turn.num_prefill_tokens, turn.num_context_tokens) / ceilings.flop_per_s,
            costs.weight_bytes / ceilings.bytes_per_s,
        )
        token_s = costs.token_bytes(turn.num_context_tokens) / ceilings.bytes_per_s
        return cls(vision_s, prefill_s, token_s, vision_s + prefill_s + token_s * max(0, turn.num_tokens - 1))


def summarize_roofline(run: ModeRun, costs: Costs, ceilings: Ceilings) -> dict[str, Any]:
    """Return the median lower bounds over the last minute of a run, and their shares of the measured times."""
    turns = last_minute(run.turns)
    bounds = [LowerBound.of(turn, costs, ceilings) for turn in turns]
    inter_token_s = percentile([s for turn in turns for s in turn.inter_token_s], 0.5)
    medians = {field.name: percentile([getattr(b, field.name) for b in bounds], 0.5) for field in fields(LowerBound)}
    shares = {"turn_share": percentile([b.turn_s / t.latency_s for b, t in zip(bounds, turns, strict=True)], 0.5)}
    if inter_token_s:
        shares["token_share"] = medians["token_s"] / inter_token_s
    return {name: six_digits(value) for name, value in (medians | shares).items()}
