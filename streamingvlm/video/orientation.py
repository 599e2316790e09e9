"""From stored to displayed frames: rotation and mirroring, as phones and editors state them, and square pixels."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MAX_PIXEL_ASPECT = 8
"""A pixel longer than this is an error in the file; the longest in use are 2:1."""


def displayed_size(height: int, width: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return the height and width with square pixels of a frame whose pixels have an aspect, width over height.

    The side that is too short grows, so no detail is lost. No aspect, or an absurd one, means square pixels.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return height, width
    return (height, round(width * pixel_aspect)) if pixel_aspect > 1 else (round(height / pixel_aspect), width)


@dataclass(frozen=True)
class Orientation:
    """A rotation by a multiple of 90 degrees, optionally mirrored: first transpose, then flip."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_display_matrix(cls, matrix: bytes | None) -> "Orientation":
        """Parse FFmpeg's side data: nine native 32-bit integers a b u, c d v, x y w, in 16.16 fixed point.

        A stored point (column p, row q) is displayed at column a p + c q + x, row b p + d q + y. This is rounded to
        the nearest quarter turn. No matrix, or one of zeros, gives the identity.
        """
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
        return cls(flip_rows=d < 0, flip_columns=a < 0)

    @property
    def rotation(self) -> int:
        """Degrees clockwise, without the mirroring."""
        if self.transpose:
            return 90 if self.flip_columns else 270
        return 180 if self.flip_rows else 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the image [H, W, 3] as displayed, as a view without a copy."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.flip_rows:
            image = image[::-1]
        if self.flip_columns:
            image = image[:, ::-1]
        return image
