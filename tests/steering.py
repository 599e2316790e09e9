"""Recording the logits of a session, and making it generate given tokens: samplers handed to its model runner."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamingvlm.inference.sampling import sample_tokens
from streamingvlm.inference.session import StreamingSession


def record_logits(session: StreamingSession) -> list[torch.Tensor]:
    """Collect the logits before every token that the session samples, until `restore_sampling` or `steered`."""
    seen = []

    def sample_and_keep(logits, *args, **rows):
        seen.append(logits[0].clone())
        return sample_tokens(logits, *args, **rows)

    session.engine.runner.sample = sample_and_keep
    return seen


def restore_sampling(session: StreamingSession):
    """Let the session sample as usual."""
    session.engine.runner.sample = sample_tokens


@contextmanager
def steered(session: StreamingSession, ids) -> Iterator[list[torch.Tensor]]:
    """Let the session generate ``ids``, or the first of them, whatever the logits; yields the logits before each."""
    remaining, seen = iter(ids), []

    def take_next(logits, *_args, **_rows):
        seen.append(logits[0].clone())
        return torch.tensor([next(remaining)])

    session.engine.runner.sample = take_next
    try:
        yield seen
    finally:
        restore_sampling(session)
