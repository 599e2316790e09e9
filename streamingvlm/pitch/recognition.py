"""Is a picture one of a synthetic match? The embedded model knows nothing else."""

import torch

from streamingvlm.pitch.renderer import GRASS

_TOLERANCE = 24  # per channel: video codecs and JPEG move colours by less
_MIN_SHARE = 0.25  # of the pixels; a whole match has never fewer than half


def looks_like_pitch(frames: torch.Tensor) -> bool:
    """Return True if frames, uint8 [F, 3, H, W] RGB, have the colours of a synthetic match's grass."""
    pixels = frames.to(torch.int16)
    grass = [(pixels - torch.tensor(colour).view(3, 1, 1)).abs().amax(1) <= _TOLERANCE for colour in GRASS]
    return torch.stack(grass).any(0).float().mean().item() >= _MIN_SHARE


def unknown_scene(model_name: str, frames: torch.Tensor | None) -> str | None:
    """Return a line for the user if the embedded model is to watch something else than a synthetic match.

    frames: the first that it will see, as in `looks_like_pitch`; None if there are none yet.
    """
    if model_name != "pitch" or (frames is not None and looks_like_pitch(frames)):
        return None
    return (
        "the embedded model knows the synthetic match alone, and what it says of anything else means nothing; "
        "give model=... (a folder, or a name on the hub such as mit-han-lab/StreamingVLM)"
    )
