"""How fast a machine trains: the real trainer on random weights and random features, nothing downloaded.

Models are drawn from their configuration on the device itself. Chunks are as long as the paper's, 24 s of 720 tokens
with 1,024 tokens of earlier text, and go through the trainer's own workers, packing and loss; what a frozen tower makes
of the video is taken to be in the cache. So the figures are those of training, but for the loss, which means nothing.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from streamingvlm.benchmark.random_weights import random_model
from streamingvlm.data.chunks import RememberingTokenizer, chunk_tokens
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
    """What a chunk of the benchmark is made of.

    rows * columns: vision tokens of a second; words_per_s: said in each; previous_tokens: of earlier text.
    """

    num_turns: int = 24
    rows: int = 20
    columns: int = 36
    words_per_s: int = 3
    previous_tokens: int = 1024


class RandomChunks(Dataset):
    """Chunks of one shape with words of no meaning; all share their features, which are copied into every batch."""

    def __init__(self, turns: TurnFormat, shape: ChunkShape, *, hidden_size: int, num_examples: int):
        grid = (1, shape.rows, shape.columns)
        seconds = [Turn(n, n, n + 1, grid) for n in range(shape.num_turns)]
        line = " ".join(["pass by red"] * shape.words_per_s).split()[: shape.words_per_s]
        previous = turns.speech_ids("pass by red ") * shape.previous_tokens
        self.tokens = chunk_tokens(turns, seconds, [" ".join(line)] * len(seconds), previous[: shape.previous_tokens])
        self.vision = torch.randn(shape.num_turns * shape.rows * shape.columns, hidden_size).bfloat16()
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        return example_from(f"chunk {index}", self.tokens, self.vision)

    def length(self, index: int) -> int:
        """Tokens of an example."""
        return len(self.tokens)


class _Measurement(ThroughputLogger):
    """Counts from the step on at which all is warm."""

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
        """The figures are those of the whole measurement."""


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
    """Train a random model for ``fit.num_steps`` steps and return the figures of all but the first few.

    architecture: as `random_model` takes it; lora: adapters instead of all weights. peak_tflops: of the device; by
    default looked up by its name.
    Returns tokens_per_s, video_s_per_s, data_wait, peak_memory_gb, mfu where the peak is known, the weights in
    billions, those of them that are trained, the tokens of a chunk, and the seconds of a step.
    Raises ConfigError for an architecture that cannot stream, and for a run without a step to be measured.
    """
    if fit.num_steps is None or fit.num_steps <= num_warmup_steps:
        raise ConfigError(f"num_steps={fit.num_steps} leaves nothing to measure; give more than {num_warmup_steps}")
    torch.manual_seed(0)
    place = torch.device(device)
    model = random_model(
        architecture, device=place, dtype=getattr(torch, weights_dtype), attention=_attention(fit, place)
    )
    module = SFTModel(with_lora_(model, lora) if lora else model.hf)
    turns = TurnFormat(RememberingTokenizer(model.tokenizer), temporal_step=2.0)
    chunks = RandomChunks(
        turns,
        shape or ChunkShape(),
        hidden_size=model.hf.config.text_config.hidden_size,
        num_examples=fit.batch_size * fit.num_steps,
    )
    if place.type == "cuda":
        peak_tflops = peak_tflops or known_peak_tflops(torch.cuda.get_device_name(place))
        torch.cuda.reset_peak_memory_stats(place)
    meter = ThroughputMeter(turns.end_of_turn_id, flops=step_flops(model.hf))
    measurement = _Measurement(meter, num_warmup_steps=num_warmup_steps, peak_tflops=peak_tflops)
    _train(module, chunks, fit, model, measurement, device)
    passed = meter.pop_counters()
    return measurement.metrics(passed, num_processes=1, device=place) | {
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


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results by name of the case, as a table for people; a case that failed has an ``error`` instead of figures."""
    columns = {
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "s of video/s": ("video_s_per_s", "{:.1f}"),
        "MFU": ("mfu", "{:.1%}"),
        "memory GB": ("peak_memory_gb", "{:.1f}"),
        "data wait": ("data_wait", "{:.1%}"),
        "s a step": ("step_s", "{:.2f}"),
    }
    width = max(len(name) for name in results)
    lines = [" " * width + "".join(f"  {title:>12}" for title in columns)]
    for name, figures in results.items():
        cells = [form.format(figures[key]) if key in figures else "-" for key, form in columns.values()]
        shown = f"  {figures['error']}" if "error" in figures else "".join(f"  {cell:>12}" for cell in cells)
        lines.append(f"{name:<{width}}{shown}")
    return "\n".join(lines)
