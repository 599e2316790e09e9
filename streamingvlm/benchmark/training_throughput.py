"""Training throughput: the real trainer on random weights and random vision features, with nothing to download.

Chunks have the paper's length, 24 s of 720 vision tokens with 1,024 tokens of previous text, and pass through the
trainer's own workers, packing and loss. The vision tower is frozen and its features count as cached, so it does not
run. Throughput and memory equal those of a real run; the loss has no meaning.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.data.chunks import CachedTokenizer, chunk_tokens
from streamingvlm.errors import ConfigError
from streamingvlm.model.attention import has_flash_attn
from streamingvlm.training.adapters import LoraSettings, with_lora_
from streamingvlm.training.collate import Collate
from streamingvlm.training.examples import Example, example_from
from streamingvlm.training.flops import known_peak_tflops, step_flops
from streamingvlm.training.settings import FitSettings
from streamingvlm.training.sft_model import SFTModel
from streamingvlm.training.throughput import ThroughputLogger, ThroughputMeter
from streamingvlm.training.trainer import fit_
from streamingvlm.turns import Turn, TurnFormat


@dataclass(frozen=True)
class ChunkShape:
    """The contents of a training chunk.

    rows * columns: vision tokens per turn. words_per_s: words of each reply. previous_tokens: of previous text.
    """

    num_turns: int = 24
    rows: int = 20
    columns: int = 36
    words_per_s: int = 3
    previous_tokens: int = 1024


class RandomChunks(Dataset):
    """Chunks of one shape with fixed words; all share the same random features, which are copied into every batch."""

    def __init__(self, turns: TurnFormat, shape: ChunkShape, *, hidden_size: int, num_examples: int):
        grid = (1, shape.rows, shape.columns)
        chunk = [Turn(n, n, n + 1, grid) for n in range(shape.num_turns)]
        line = " ".join(["pass by red"] * shape.words_per_s).split()[: shape.words_per_s]
        previous = turns.speech_ids("pass by red ") * shape.previous_tokens
        self.tokens = chunk_tokens(turns, chunk, [" ".join(line)] * len(chunk), previous[: shape.previous_tokens])
        self.vision = torch.randn(shape.num_turns * shape.rows * shape.columns, hidden_size).bfloat16()
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        return example_from(f"chunk {index}", self.tokens, self.vision)

    def length(self, index: int) -> int:
        """Return the number of tokens of an example."""
        return len(self.tokens)


class _Measurement(ThroughputLogger):
    """Throughput after the warm-up steps."""

    def __init__(self, meter: ThroughputMeter, *, num_warmup_steps: int, peak_tflops: float | None):
        super().__init__(meter, peak_tflops=peak_tflops)
        self.num_warmup_steps = num_warmup_steps

    def on_step_end(self, args, state, control, **_):
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        super().on_step_end(args, state, control)
        if state.global_step == self.num_warmup_steps:
            self.meter.pop_counters()

    def on_log(self, args, state, control, logs, **_):
        """Add nothing to the logs, so that the meter keeps counting until the end of the measurement."""


def measure_training(
    architecture: Mapping[str, Any],
    fit: FitSettings,
    *,
    lora: LoraSettings | None = None,
    shape: ChunkShape | None = None,
    weights_dtype: str = "float32",
    num_warmup_steps: int = 2,
    device: str = "cpu",
    peak_tflops: float | None = None,
) -> dict[str, float]:
    """Train a random model for ``fit.num_steps`` steps and return the throughput after the warm-up steps.

    architecture: as `random_model` takes it. lora: train adapters instead of all weights. peak_tflops: of the device;
    by default looked up by its name.
    Returns tokens_per_s, video_s_per_s, data_wait, peak_memory_gb, mfu (if the peak is known), weights_b and trained_b
    (all weights and trained weights, in billions), chunk_tokens and step_s.
    Raises ConfigError for an architecture that cannot stream, and if no step is left after the warm-up.
    """
    if fit.num_steps is None or fit.num_steps <= num_warmup_steps:
        raise ConfigError(f"num_steps={fit.num_steps} leaves nothing to measure; give more than {num_warmup_steps}")
    torch.manual_seed(0)
    torch_device = torch.device(device)
    model = random_model(
        architecture, device=torch_device, dtype=getattr(torch, weights_dtype), attention=_attention(fit, torch_device)
    )
    module = SFTModel(with_lora_(model, lora) if lora else model.hf)
    turns = TurnFormat(CachedTokenizer(model.tokenizer), temporal_step=2.0)
    chunks = RandomChunks(
        turns,
        shape or ChunkShape(),
        hidden_size=model.hf.config.text_config.hidden_size,
        num_examples=fit.batch_size * fit.num_steps,
    )
    if torch_device.type == "cuda":
        peak_tflops = peak_tflops or known_peak_tflops(torch.cuda.get_device_name(torch_device))
        torch.cuda.reset_peak_memory_stats(torch_device)
    meter = ThroughputMeter(turns.end_of_turn_id, flops=step_flops(model.hf))
    measurement = _Measurement(meter, num_warmup_steps=num_warmup_steps, peak_tflops=peak_tflops)
    _train(module, chunks, fit, model, measurement, device)
    passed = meter.pop_counters()
    return measurement.metrics(passed, num_processes=1, device=torch_device) | {
        "weights_b": sum(weight.numel() for weight in model.hf.parameters()) / 1e9,
        "trained_b": sum(weight.numel() for weight in module.parameters() if weight.requires_grad) / 1e9,
        "chunk_tokens": chunks.length(0),
        "step_s": passed.busy_s / (fit.num_steps - num_warmup_steps),
    }


def _train(module, chunks, fit, model, measurement, device):
    collate = Collate(model.tokenizer.pad_token_id, packed=fit.pack_tokens > 0)
    with tempfile.TemporaryDirectory() as folder:
        fit_(
            module,
            chunks,
            collate,
            fit,
            seed=0,
            folder=folder,
            device=device,
            callbacks=[measurement],
            meter=measurement.meter,
        )


def _attention(fit: FitSettings, device: torch.device) -> str:
    is_fast = device.type == "cuda" and fit.bf16 and has_flash_attn()
    return fit.attention or ("flash_attention_2" if is_fast else "sdpa")


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the results by case as a table of text; a case that failed has an ``error`` instead of results."""
    columns = {
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "video s/s": ("video_s_per_s", "{:.1f}"),
        "MFU": ("mfu", "{:.1%}"),
        "memory, GB": ("peak_memory_gb", "{:.1f}"),
        "data wait": ("data_wait", "{:.1%}"),
        "s/step": ("step_s", "{:.2f}"),
    }
    width = max(len(name) for name in results)
    lines = [" " * width + "".join(f"  {title:>12}" for title in columns)]
    for name, result in results.items():
        cells = [form.format(result[key]) if key in result else "-" for key, form in columns.values()]
        shown = f"  {result['error']}" if "error" in result else "".join(f"  {cell:>12}" for cell in cells)
        lines.append(f"{name:<{width}}{shown}")
    return "\n".join(lines)
