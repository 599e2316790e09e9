"""Footage: matches rendered once and kept as bytes, to be cut into training examples.

Rendering a second takes longer than reading it a second time, and a minute of footage is 4.5 MB. Mirroring a picture
left to right or top to bottom leaves all that is said of it true, so that each second serves as four.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch

from streamingvlm.model.vision import preprocess
from streamingvlm.pitch.renderer import render
from streamingvlm.pitch.world import Match, PitchSecond
from streamingvlm.training.pitch.architecture import PICTURE_PIXELS
from streamingvlm.training.pitch.tower import Tower

NUM_MIRRORINGS = 4
_ENCODED_AT_ONCE = 100


@dataclass
class Footage:
    """The first seconds of one match.

    frames: uint8 [S, F, 3, H, W]; empty once they have been encoded.
    vision: [M, S, V, D], what a trained tower makes of them in each of M mirrorings; empty before.
    """

    intro: str
    seconds: list[PitchSecond]
    frames: torch.Tensor
    vision: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def num_mirrorings(self) -> int:
        """In how many ways its seconds can be shown."""
        return len(self.vision) or NUM_MIRRORINGS

    def shown(self, places: list[int], mirroring: int) -> torch.Tensor:
        """What a clip shows: tokens [S * V, D], or, where no tower has seen them yet, frames uint8 [S, F, 3, H, W]."""
        if len(self.vision):
            return self.vision[mirroring, places].flatten(0, 1)
        return mirrored(self.frames[places], mirroring)


def film(seed: int, duration_s: int) -> Footage:
    """Play and render the first seconds of the match of a seed."""
    match = Match(seed)
    seconds = list(islice(match.seconds(), duration_s))
    return Footage(match.intro, seconds, torch.stack([render(second, size=PICTURE_PIXELS) for second in seconds]))


def mirrored(frames: torch.Tensor, mirroring: int) -> torch.Tensor:
    """Mirror pictures [..., H, W]: bit 0 of ``mirroring`` left to right, bit 1 top to bottom."""
    axes = [axis for bit, axis in enumerate((-1, -2)) if mirroring >> bit & 1]
    return frames.flip(axes) if axes else frames


def pixels_of(frames: torch.Tensor, tower: Tower) -> torch.Tensor:
    """Patches [S * patches, values] of seconds of frames [S, F, 3, H, W], one second after the other."""
    limit = PICTURE_PIXELS**2
    return preprocess(frames.flatten(0, 1), family=tower.family, min_pixels=limit, max_pixels=limit)[0]


@torch.no_grad()
def encode_(footage: Iterable[Footage], tower: Tower, *, num_mirrorings: int = NUM_MIRRORINGS):
    """Let a trained tower see all footage, and keep what it makes of it (bfloat16) instead of the pictures."""
    for reel in footage:
        reel.vision = torch.stack([_encoded(mirrored(reel.frames, number), tower) for number in range(num_mirrorings)])
        reel.frames = reel.frames[:0].clone()  # a view would keep the bytes


def _encoded(frames: torch.Tensor, tower: Tower) -> torch.Tensor:
    device = tower.visual.device
    with torch.autocast(device.type, torch.bfloat16):
        parts = [tower(pixels_of(part, tower).to(device)) for part in frames.split(_ENCODED_AT_ONCE)]
    return torch.cat(parts).bfloat16().cpu()
