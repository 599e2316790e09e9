"""The lines of a stream that is never moved."""

import pytest
import torch

from streamingvlm import StreamingSession
from streamingvlm.serving.jpeg import decode_jpeg


@pytest.fixture(scope="session")
def unmoved(pitch, match_jpegs) -> list[str]:
    """The lines of the first 12 s of the sample match, by one session in one process."""
    frames = [decode_jpeg(jpeg, max_pixels=10**7) for jpeg in match_jpegs[:24]]
    session = StreamingSession(pitch)
    lines = [session.step(torch.stack(pair)).text for pair in zip(frames[::2], frames[1::2], strict=True)]
    assert len(set(lines)) > 3
    return lines
