"""Held-out streams during training: a recording streamed through the session, beside its true commentary.

The model is shared, not copied. During the stream the language model uses the streaming attention in eval mode.
Afterwards attention, modes and random states are restored, so training continues unchanged.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.stream_settings import SETTINGS_KEY
from streamingvlm.video.reader import open_video

# Greedy, so that two commentaries differ only by their weights.
_GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class HeldOutLine:
    """One turn of a held-out recording: its start in the file, the model's line and the true line."""

    start_s: float
    said: str
    truth: str


@dataclass(frozen=True)
class HeldOutCommentary:
    """The first turns of a held-out recording with the model's commentary and the true one."""

    name: str
    lines: Sequence[HeldOutLine]

    def __str__(self) -> str:
        width = max([len(line.said) for line in self.lines] + [len("said")])
        rows = [f"{'second':>6}  {'said':<{width}}  truth"]
        rows += [f"{line.start_s:6g}  {line.said:<{width}}  {line.truth}".rstrip() for line in self.lines]
        return "\n".join([f"{self.name}:", *rows])


def stream_held_out(
    model: StreamingModel,
    recording: Mapping[str, Any],
    *,
    video_root: str | Path = ".",
    max_turns: int = 60,
    sampling: Mapping[str, Any] = _GREEDY,
    **settings: Any,
) -> HeldOutCommentary:
    """Stream the first turns of a recording through a session on a model that may be in training.

    model: with its current weights, adapters included.
    recording: a row of the prepared data: id, video, start_s, lines and optionally previous_text and query.
    settings: ``cache`` and ``video`` of the session, by default those in the model's config.

    Raises VideoError for a recording that cannot be read, ConfigError for weights that are sharded over processes.
    """
    truth = recording["lines"][:max_turns]
    with lend_to_session(model) as lent:
        session = StreamingSession(
            lent,
            sampling=sampling,
            query=recording.get("query") or "",
            previous_text=recording.get("previous_text") or "",
            **settings,
        )
        path = Path(video_root) / recording["video"]
        said = list(_commentary(session, path, recording["start_s"], len(truth)))
    if len(said) < len(truth):
        raise VideoError(f"{recording['video']!r} ends after {len(said)} of {len(truth)} turns; prepare the data again")
    lines = [HeldOutLine(line.start_s, line.text, words) for line, words in zip(said, truth, strict=True)]
    return HeldOutCommentary(str(recording["id"]), lines)


def _commentary(session: StreamingSession, path: Path, start_s: float, num_turns: int) -> Iterator[Commentary]:
    config = session.video_config
    with open_video(
        path, fps=config.fps, turn_s=config.turn_s, decoder=config.decoder, prefetch=config.prefetch, start_s=start_s
    ) as reader:
        # The file's own times, as in the training data.
        for turn in islice(reader, num_turns):
            yield session.step(turn)


@contextmanager
def lend_to_session(model: StreamingModel) -> Iterator[StreamingModel]:
    """Yield a model in training for use by a session, and restore everything that the session changes.

    Raises ConfigError for weights that are sharded over processes, because a session calls layers one by one.
    """
    hf = model.hf
    if any(isinstance(weight, DTensor) for weight in hf.parameters()):
        raise ConfigError(
            "a model sharded over processes (fsdp) cannot be streamed; give held_out_stream.every_steps=0"
        )
    weight = hf.model.language_model.embed_tokens.weight
    with _restored_random_states(weight.device), _eval_mode(hf):
        # A new handle, because the old one may cache copies of weights that have changed since.
        settings = getattr(hf.config, SETTINGS_KEY, model.stream_defaults)
        yield replace(model, device=weight.device, dtype=weight.dtype, stream_defaults=settings)


@contextmanager
def _eval_mode(hf: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in hf.modules()]
    hf.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@contextmanager
def _restored_random_states(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
