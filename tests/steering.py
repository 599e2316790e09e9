"""Looking at what a session's model says, token by token, and putting words into its mouth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamingvlm.inference.session import StreamingSession


def record_logits(session: StreamingSession) -> list[torch.Tensor]:
    """Collect the logits before every token that the session chooses, as long as nobody steers it."""
    seen = []
    runner = session.engine.runner
    choose = runner.choose

    def choose_and_keep(logits, *args, **rows):
        seen.append(logits[0].clone())
        return choose(logits, *args, **rows)

    runner.choose = choose_and_keep
    return seen


@contextmanager
def steered(session: StreamingSession, ids) -> Iterator[list[torch.Tensor]]:
    """Let the session say ``ids``, or the first of them, whatever the logits; gives the logits before each."""
    remaining, seen = iter(ids), []

    def choose(logits, *_args, **_rows):
        seen.append(logits[0].clone())
        return torch.tensor([next(remaining)])

    session.engine.runner.choose = choose
    try:
        yield seen
    finally:
        del session.engine.runner.choose
