"""What a person and a log want to know while training runs: pace, use of the device, and what it says by now.

A `Meter` is told what passes; `Throughput` turns it into figures in every entry of the log, `ProgressLine` shows them,
and `HeldOutStream` lets the model, as trained so far, comment on a recording that it does not learn from.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from streamingvlm.errors import ConfigError
from streamingvlm.training.flops import StepFlops

_LOG = logging.getLogger(__name__)
_BYTES_PER_GB = 1e9
_SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "held-out loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "video_s_per_s": "{:.1f} s of video/s",
    "mfu": "MFU {:.1%}",
    "data_wait": "data wait {:.1%}",
    "peak_memory_gb": "{:.1f} GB",
}


@dataclass
class Passed:
    """What went through the model in some time.

    busy_s: time of the steps, the wait for their data included, and nothing between them (saving, evaluation).
    wait_s: of it, the wait for data. num_tokens: of the examples, padding left out. num_turns: of their video.
    """

    busy_s: float = 0.0
    wait_s: float = 0.0
    num_tokens: int = 0
    num_turns: int = 0
    num_flops: int = 0


@dataclass
class Meter:
    """Counts what passes: the trainer tells it when a step begins to wait, what came, and when the step is done.

    end_of_turn_id: closes each turn of the video once, and is always asked for.
    """

    end_of_turn_id: int
    flops: StepFlops | None = None
    passed: Passed = field(default_factory=Passed)
    _began_s: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the data of a step, which begins with it."""
        self._began_s = time.perf_counter()
        yield
        self.passed.wait_s += time.perf_counter() - self._began_s

    def count_(self, batch: Mapping[str, Any]):
        """Count a batch, as `Collate` makes it; one whose tokens weigh nothing is another process's and counts not."""
        if "labels" not in batch or not batch.get("weights", torch.ones(1)).any():
            return
        lengths = example_lengths(batch)
        num_asked = int((batch["labels"] >= 0).sum())
        self.passed.num_tokens += sum(lengths)
        self.passed.num_turns += int((batch["labels"] == self.end_of_turn_id).sum())
        self.passed.num_flops += self.flops.of(lengths, num_asked) if self.flops else 0

    def step_done_(self):
        """The step that began with the last wait is over."""
        if self._began_s is not None:
            self.passed.busy_s += time.perf_counter() - self._began_s
            self._began_s = None

    def take_(self) -> Passed:
        """What has passed since the last time this was asked."""
        passed, self.passed = self.passed, Passed()
        return passed


def example_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Tokens of each example of a batch, padding left out."""
    if batch.get("starts") is not None:
        return batch["starts"].diff().tolist()
    # Positions grow along an example; those of the padding behind it are 0.
    positions = batch["position_ids"][0]
    places = torch.arange(1, positions.shape[1] + 1, device=positions.device)
    return (places * (positions > 0)).amax(dim=1).clamp(min=1).tolist()


class Throughput(TrainerCallback):
    """Adds to every log entry with a loss: tokens and seconds of video a second, MFU, data wait, peak memory.

    tokens_per_s, video_s_per_s: of all processes, taken to be as busy as this one; saving and evaluation are no part of
        the time. mfu: of this process's device; left out where its peak is not known, as a CPU's is.
    data_wait: share of the time in which the model waited for its data. peak_memory_gb: of the GPU, or of the process.

    turn_s: seconds of video in a turn. peak_tflops: of one device, None where it is not known.
    more: further figures of the run, such as those of the vision cache.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        turn_s: float = 1.0,
        peak_tflops: float | None = None,
        more: Callable[[], Mapping[str, float]] = dict,
    ):
        if peak_tflops is not None and not peak_tflops > 0:
            raise ConfigError(f"peak_tflops={peak_tflops} is not above 0; give the device's, or null to look it up")
        self.meter = meter
        self.turn_s = turn_s
        self.peak_tflops = peak_tflops
        self.more = more
        self._peak_resident_bytes = 0

    def on_step_end(self, args, state, control, **_):
        """A step is over, before anything is saved or evaluated."""
        self.meter.step_done_()
        self._peak_resident_bytes = max(self._peak_resident_bytes, psutil.Process().memory_info().rss)

    def on_log(self, args, state, control, logs: dict[str, float], **_):
        """Put the figures into the entry that is being written, and into the history of the run."""
        if "loss" not in logs:
            return
        figures = self.figures(self.meter.take_(), num_processes=args.world_size, device=args.device)
        logs.update(figures)
        state.log_history[-1].update(figures)

    def figures(self, passed: Passed, *, num_processes: int, device: torch.device) -> dict[str, float]:
        """The figures of what has passed."""
        busy_s = max(passed.busy_s, 1e-9)
        figures = {
            "tokens_per_s": num_processes * passed.num_tokens / busy_s,
            "video_s_per_s": num_processes * passed.num_turns * self.turn_s / busy_s,
            "data_wait": passed.wait_s / busy_s,
            "peak_memory_gb": self._peak_bytes(device) / _BYTES_PER_GB,
        }
        if self.peak_tflops and passed.num_flops:
            figures["mfu"] = passed.num_flops / busy_s / (self.peak_tflops * 1e12)
        return figures | dict(self.more())

    def _peak_bytes(self, device: torch.device) -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else self._peak_resident_bytes


class ProgressLine(TrainerCallback):
    """Shows how far a run is: a bar with the newest figures in a terminal, plain lines of the log elsewhere.

    console: where the bar is drawn; None, and one that is no terminal, gives lines.
    """

    def __init__(self, console: Console | None = None):
        self.console = console if console is not None and console.is_terminal else None
        self._bar: Progress | None = None
        self._began_s, self._first_step = 0.0, 0

    def on_train_begin(self, args, state, control, **_):
        """Draw the bar, from the step that the run goes on from."""
        self._began_s, self._first_step = time.monotonic(), state.global_step
        if self.console is None or not state.is_world_process_zero:
            return
        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self.console)
        self._bar.start()
        self._bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args, state, control, **_):
        """The bar moves."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args, state, control, logs: Mapping[str, float], **_):
        """The newest figures, for a person."""
        if not state.is_world_process_zero or not (text := _figures_line(logs)):
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text)
        else:
            _LOG.info("step %d of %d: %s%s", state.global_step, state.max_steps, text, self._left(state))

    def on_train_end(self, args, state, control, **_):
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, state) -> str:
        num_done = state.global_step - self._first_step
        if num_done <= 0 or state.global_step >= state.max_steps:
            return ""
        left_s = (time.monotonic() - self._began_s) / num_done * (state.max_steps - state.global_step)
        return f", {timedelta(seconds=round(left_s))} left"


class HeldOutStream(TrainerCallback):
    """Every so many steps, lets the model comment on a held-out recording as in a live stream.

    stream: does that with the model as it stands and returns the commentary beside the truth; it must leave the model
        and the random states as they are (`evaluation.held_out` does).
    show: told the step and what ``stream`` returned; by default it is written to the log.
    """

    def __init__(self, stream: Callable[[], Any], *, every_steps: int, show: Callable[[int, Any], None] | None = None):
        if every_steps < 1:
            raise ConfigError(f"every_steps={every_steps} streams never; give 1 or more")
        self.stream = stream
        self.every_steps = every_steps
        self.show = show or log_commentary

    def on_step_end(self, args, state, control, **_):
        """Stream, if it is time, in the first process alone."""
        is_due = state.global_step % self.every_steps == 0 or state.global_step == state.max_steps
        if is_due and state.is_world_process_zero:
            self.show(state.global_step, self.stream())


def log_commentary(step: int, commentary: Any):
    """Write a held-out commentary to the log."""
    _LOG.info("held-out stream after step %d\n%s", step, commentary)


def _figures_line(logs: Mapping[str, float]) -> str:
    return ", ".join(text.format(logs[name]) for name, text in _SHOWN.items() if name in logs)
