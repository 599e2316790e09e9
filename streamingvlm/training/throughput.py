"""Throughput of training: tokens and video per second, MFU, data wait and peak memory, in every log entry."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from streamingvlm.errors import ConfigError
from streamingvlm.training.flops import StepFlops

_BYTES_PER_GB = 1e9


@dataclass
class Counters:
    """Work done by this process in some interval.

    busy_s: duration of the steps with the wait for their data, without what lies between them (saving, evaluation).
    wait_s: the part of it spent waiting for data. num_tokens: without padding. num_turns: turns of video.
    """

    busy_s: float = 0.0
    wait_s: float = 0.0
    num_tokens: int = 0
    num_turns: int = 0
    num_flops: int = 0


@dataclass
class ThroughputMeter:
    """Counts the work of the training steps. The trainer calls `data_wait`, `count` and `end_step` in every step.

    end_of_turn_id: supervised once in every turn of video, so its labels count turns.
    """

    end_of_turn_id: int
    flops: StepFlops | None = None
    counters: Counters = field(default_factory=Counters)
    _step_began_s: float | None = None

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time the wait for the data of a step; the step begins here."""
        self._step_began_s = time.perf_counter()
        yield
        self.counters.wait_s += time.perf_counter() - self._step_began_s

    def count(self, batch: Mapping[str, Any]):
        """Count a batch of `Collate`; a padding batch, with weights of 0, repeats another process's and is skipped."""
        if "labels" not in batch or not batch.get("weights", torch.ones(1)).any():
            return
        lengths = example_lengths(batch)
        num_supervised = int((batch["labels"] >= 0).sum())
        self.counters.num_tokens += sum(lengths)
        self.counters.num_turns += int((batch["labels"] == self.end_of_turn_id).sum())
        self.counters.num_flops += self.flops.of(lengths, num_supervised) if self.flops else 0

    def end_step(self):
        """End the step that began with the last `data_wait`."""
        if self._step_began_s is not None:
            self.counters.busy_s += time.perf_counter() - self._step_began_s
            self._step_began_s = None

    def pop_counters(self) -> Counters:
        """Return the counters since the last call and reset them."""
        counters, self.counters = self.counters, Counters()
        return counters


def example_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Return the tokens of each example of a batch, without padding."""
    if batch.get("cu_seqlens") is not None:
        return batch["cu_seqlens"].diff().tolist()
    # Positions grow along an example and are 0 in the padding behind it.
    positions = batch["position_ids"][0]
    lengths = torch.arange(1, positions.shape[1] + 1, device=positions.device)
    return (lengths * (positions > 0)).amax(dim=1).clamp(min=1).tolist()


class ThroughputLogger(TrainerCallback):
    """Adds throughput metrics to every log entry that has a loss.

    tokens_per_s, video_s_per_s: of all processes, assuming that all are as busy as this one; saving and evaluation are
        not part of the time. mfu: of this process's device, if its peak is known.
    data_wait: share of the time spent waiting for data. peak_memory_gb: of the GPU, or of the process on a CPU.

    turn_s: seconds of video per turn. peak_tflops: of one device; None if unknown.
    extra_metrics: returns further metrics, such as those of the vision cache.
    """

    def __init__(
        self,
        meter: ThroughputMeter,
        *,
        turn_s: float = 1.0,
        peak_tflops: float | None = None,
        extra_metrics: Callable[[], Mapping[str, float]] = dict,
    ):
        if peak_tflops is not None and not peak_tflops > 0:
            raise ConfigError(
                f"peak_tflops={peak_tflops} is not above 0; give the peak of the device, or null to look it up"
            )
        self.meter = meter
        self.turn_s = turn_s
        self.peak_tflops = peak_tflops
        self.extra_metrics = extra_metrics
        self._peak_resident_bytes = 0

    def on_step_end(self, args, state, control, **_):
        """End the step before anything is saved or evaluated."""
        self.meter.end_step()
        self._peak_resident_bytes = max(self._peak_resident_bytes, psutil.Process().memory_info().rss)

    def on_log(self, args, state, control, logs: dict[str, float], **_):
        """Add the metrics to the log entry and to the history of the run."""
        if "loss" not in logs:
            return
        metrics = self.metrics(self.meter.pop_counters(), num_processes=args.world_size, device=args.device)
        logs.update(metrics)
        state.log_history[-1].update(metrics)

    def metrics(self, counters: Counters, *, num_processes: int, device: torch.device) -> dict[str, float]:
        """Compute the metrics of an interval."""
        busy_s = max(counters.busy_s, 1e-9)
        metrics = {
            "tokens_per_s": num_processes * counters.num_tokens / busy_s,
            "video_s_per_s": num_processes * counters.num_turns * self.turn_s / busy_s,
            "data_wait": counters.wait_s / busy_s,
            "peak_memory_gb": self._peak_bytes(device) / _BYTES_PER_GB,
        }
        if self.peak_tflops and counters.num_flops:
            metrics["mfu"] = counters.num_flops / busy_s / (self.peak_tflops * 1e12)
        return metrics | dict(self.extra_metrics())

    def _peak_bytes(self, device: torch.device) -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else self._peak_resident_bytes
