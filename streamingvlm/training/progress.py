"""Progress of a training run: a progress bar or log lines, and the commentary of the model on held-out video."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from streamingvlm.errors import ConfigError

_LOG = logging.getLogger(__name__)
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


class ProgressLine(TrainerCallback):
    """Shows a progress bar with the latest metrics in a terminal, and plain log lines elsewhere.

    console: where to draw the bar; without one, or if it is not a terminal, log lines are written.
    """

    def __init__(self, console: Console | None = None):
        self.console = console if console is not None and console.is_terminal else None
        self._bar: Progress | None = None
        self._began_s, self._first_step = 0.0, 0

    def on_train_begin(self, args, state, control, **_):
        """Draw the bar at the step from which the run starts or resumes."""
        self._began_s, self._first_step = time.monotonic(), state.global_step
        if self.console is None or not state.is_world_process_zero:
            return
        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self.console)
        self._bar.start()
        self._bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args, state, control, **_):
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args, state, control, logs: Mapping[str, float], **_):
        """Show the latest metrics."""
        if not state.is_world_process_zero or not (text := _metrics_line(logs)):
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text)
        else:
            _LOG.info("step %d of %d: %s%s", state.global_step, state.max_steps, text, self._time_left(state))

    def on_train_end(self, args, state, control, **_):
        """Close the bar and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _time_left(self, state) -> str:
        num_done = state.global_step - self._first_step
        if num_done <= 0 or state.global_step >= state.max_steps:
            return ""
        left_s = (time.monotonic() - self._began_s) / num_done * (state.max_steps - state.global_step)
        return f", {timedelta(seconds=round(left_s))} left"


class HeldOutStream(TrainerCallback):
    """Streams a held-out recording through the model every ``every_steps`` steps and after the last.

    stream: runs the current model and returns its commentary beside the reference; it must restore the model and the
        random states, as `evaluation.held_out` does.
    show: called with the step and the result of ``stream``; by default it is logged.
    """

    def __init__(self, stream: Callable[[], Any], *, every_steps: int, show: Callable[[int, Any], None] | None = None):
        if every_steps < 1:
            raise ConfigError(f"every_steps={every_steps} is below 1; give 1 or more")
        self.stream = stream
        self.every_steps = every_steps
        self.show = show or log_commentary

    def on_step_end(self, args, state, control, **_):
        """Stream if this step is due, in the first process only."""
        is_due = state.global_step % self.every_steps == 0 or state.global_step == state.max_steps
        if is_due and state.is_world_process_zero:
            self.show(state.global_step, self.stream())


def log_commentary(step: int, commentary: Any):
    """Write a held-out commentary to the log."""
    _LOG.info("held-out stream after step %d\n%s", step, commentary)


def _metrics_line(logs: Mapping[str, float]) -> str:
    return ", ".join(text.format(logs[name]) for name, text in _SHOWN.items() if name in logs)
