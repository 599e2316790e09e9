"""A model in training, listened to: a held-out recording streamed through the real session, beside what was said then.

The model is lent, not copied. While the session has it, its language model has the streaming attention and is in eval
mode; afterwards attention, modes and random states are what they were, so that training goes on as if nothing had been.
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

# The likeliest token each time: two commentaries differ by the model alone.
_GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class HeldOutLine:
    """One turn of a held-out recording: when it is in its file, what the model says, and what was said in truth."""

    start_s: float
    said: str
    truth: str


@dataclass(frozen=True)
class HeldOutCommentary:
    """A held-out recording, or its first turns, with the model's commentary beside the true one."""

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

    model: as it was loaded; its weights are what training has made of them. Adapters in place speak along.
    recording: a row of the prepared data: id, video, start_s, lines and, where there are, previous_text and query.
    settings: ``cache`` and ``video`` of the session, where they are not those that the model's config names.

    Raises VideoError for a recording that cannot be watched, ConfigError for weights that are spread over processes.
    """
    truth = recording["lines"][:max_turns]
    with lent_to_a_session(model) as lent:
        session = StreamingSession(
            lent,
            sampling=sampling,
            query=recording.get("query") or "",
            previous_text=recording.get("previous_text") or "",
            **settings,
        )
        path = Path(video_root) / recording["video"]
        said = list(_watch(session, path, recording["start_s"], len(truth)))
    if len(said) < len(truth):
        raise VideoError(f"{recording['video']!r} ends after {len(said)} of {len(truth)} turns; prepare the data anew")
    lines = [HeldOutLine(line.start_s, line.text, words) for line, words in zip(said, truth, strict=True)]
    return HeldOutCommentary(str(recording["id"]), lines)


def _watch(session: StreamingSession, path: Path, start_s: float, num_turns: int) -> Iterator[Commentary]:
    config = session.video_config
    with open_video(
        path, fps=config.fps, turn_s=config.turn_s, decoder=config.decoder, prefetch=config.prefetch, start_s=start_s
    ) as reader:
        # With the file's own times, as training tells them.
        for second in islice(reader, num_turns):
            yield session.step(second)


@contextmanager
def lent_to_a_session(model: StreamingModel) -> Iterator[StreamingModel]:
    """Give a session the use of a model in training, and put back all that it changes.

    Raises ConfigError for weights that are spread over processes: a session calls layers one by one.
    """
    hf = model.hf
    if any(isinstance(weight, DTensor) for weight in hf.parameters()):
        raise ConfigError("a model spread over processes (fsdp) cannot be streamed; switch held-out streams off")
    weight = hf.model.language_model.embed_tokens.weight
    with _random_states_kept(weight.device), _eval_mode(hf):
        # A fresh handle: the one of before may hold copies of weights that have changed since.
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
def _random_states_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
