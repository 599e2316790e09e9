"""Footage: matches rendered once and kept in memory, to be cut into training examples.

Rendering a second takes longer than reading it again, and a minute of footage is 4.5 MB. The commentary of a second is
also correct for its frames mirrored left to right or top to bottom, so each second gives four examples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch.nn.functional import interpolate

from streamingvlm.model.vision import preprocess
from streamingvlm.pitch.camera import Camera
from streamingvlm.pitch.renderer import render
from streamingvlm.pitch.world import Match, PitchSecond
from streamingvlm.training.pitch.architecture import FRAME_SIZE
from streamingvlm.training.pitch.tower import Tower

NUM_MIRRORINGS = 4
_ENCODED_AT_ONCE = 100


@dataclass
class Footage:
    """The first seconds of one match; each second is one turn of F frames.

    frames: uint8 [S, F, 3, H, W]; empty once encoded. rendered: the same before a camera filmed them, None if none did.
    vision: [M, S, V, D], the features of each of M mirrorings; empty until encoded.
    """

    intro: str
    seconds: list[PitchSecond]
    frames: torch.Tensor
    vision: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    rendered: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def num_mirrorings(self) -> int:
        """Number of mirrorings in which the footage is available."""
        return len(self.vision) or NUM_MIRRORINGS

    def vision_of(self, indices: list[int], mirroring: int) -> torch.Tensor:
        """Return the features [S * V, D] of some seconds, or frames uint8 [S, F, 3, H, W] if not encoded."""
        if len(self.vision):
            return self.vision[mirroring, indices].flatten(0, 1)
        return mirrored(self.frames[indices], mirroring)


def render_match(seed: int, duration_s: int) -> Footage:
    """Render the first seconds of the match of a seed."""
    match = Match(seed)
    seconds = list(islice(match.seconds(), duration_s))
    return Footage(match.intro, seconds, _rendered(seconds))


def film_match(seed: int, duration_s: int, camera: Camera) -> Footage:
    """Film the first seconds of the match of a seed; the frames have the size that the model sees."""
    match = Match(seed)
    seconds, frames = zip(*camera.turns(islice(match.seconds(), duration_s)), strict=True)
    filmed = torch.stack([_resized(turn) for turn in frames])
    return Footage(match.intro, list(seconds), filmed, rendered=_rendered(seconds))


def _rendered(seconds: Iterable[PitchSecond]) -> torch.Tensor:
    return torch.stack([render(second, size=FRAME_SIZE) for second in seconds])


def _resized(frames: torch.Tensor) -> torch.Tensor:
    return interpolate(frames, size=(FRAME_SIZE, FRAME_SIZE), mode="bicubic", antialias=True)


def mirrored(frames: torch.Tensor, mirroring: int) -> torch.Tensor:
    """Mirror frames [..., H, W]: bit 0 of ``mirroring`` left to right, bit 1 top to bottom."""
    axes = [axis for bit, axis in enumerate((-1, -2)) if mirroring >> bit & 1]
    return frames.flip(axes) if axes else frames


def patches_of(frames: torch.Tensor, tower: Tower) -> torch.Tensor:
    """Return the patches [S * patches, values] of frames [S, F, 3, H, W], second by second."""
    limit = FRAME_SIZE**2
    return preprocess(frames.flatten(0, 1), family=tower.family, min_pixels=limit, max_pixels=limit)[0]


@torch.no_grad()
def encode_footage(matches: Iterable[Footage], tower: Tower, *, num_mirrorings: int = NUM_MIRRORINGS):
    """Encode footage with a trained tower; each match keeps its features (bfloat16) instead of its frames."""
    for footage in matches:
        mirrorings = (mirrored(footage.frames, number) for number in range(num_mirrorings))
        footage.vision = torch.stack([_encode(frames, tower) for frames in mirrorings])
        footage.frames = footage.frames[:0].clone()  # a view would keep the memory
        footage.rendered = None


def _encode(frames: torch.Tensor, tower: Tower) -> torch.Tensor:
    device = tower.visual.device
    with torch.autocast(device.type, torch.bfloat16):
        parts = [tower(patches_of(part, tower).to(device)) for part in frames.split(_ENCODED_AT_ONCE)]
    return torch.cat(parts).bfloat16().cpu()
