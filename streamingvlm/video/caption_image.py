"""Caption text as an overlay for YUV pictures."""

import textwrap
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LINES_PER_HEIGHT = 18  # the letters grow with the picture
_MAX_WIDTH_SHARE = 0.92
_MAX_LINES = 4
_BOX_ALPHA = 150  # of 255: a dark box behind white, outlined letters can be read on any picture


@dataclass(frozen=True)
class CaptionOverlay:
    """A box with text at the bottom of a picture, and where it goes; all sides are even.

    luma, luma_alpha: float32 [h, w]; chroma_alpha: float32 [h / 2, w / 2], towards grey.
    """

    top: int
    left: int
    luma: np.ndarray
    luma_alpha: np.ndarray
    chroma_alpha: np.ndarray

    def blend(self, planes: tuple[np.ndarray, np.ndarray, np.ndarray]):
        """Draw on the planes of a yuv420p picture, uint8 [H, W] and twice [H / 2, W / 2], in place."""
        for plane, colour, alpha, scale in (
            (planes[0], self.luma, self.luma_alpha, 1),
            (planes[1], 128.0, self.chroma_alpha, 2),
            (planes[2], 128.0, self.chroma_alpha, 2),
        ):
            rows = slice(self.top // scale, self.top // scale + alpha.shape[0])
            columns = slice(self.left // scale, self.left // scale + alpha.shape[1])
            region = plane[rows, columns]
            region[:] = region * (1 - alpha) + colour * alpha


def draw_caption(text: str, width: int, height: int) -> CaptionOverlay | None:
    """Return the overlay of a text for a picture of even sides; None without text. Long text is wrapped."""
    if not text:
        return None
    font = ImageFont.load_default(size=max(8, min(width, height) // _LINES_PER_HEIGHT))
    text = _wrapped(text, font, width * _MAX_WIDTH_SHARE)
    pad = max(2, int(font.size * 0.4))
    ink = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font, stroke_width=1)
    box_width = min(width, _even(int(ink[2] - ink[0]) + 2 * pad))
    box_height = min(height, _even(int(ink[3] - ink[1]) + 2 * pad))
    letters, outline = (Image.new("L", (box_width, box_height)) for _ in range(2))
    place = {"xy": (pad - ink[0], pad - ink[1]), "text": text, "font": font, "fill": 255, "align": "center"}
    ImageDraw.Draw(letters).multiline_text(**place)
    ImageDraw.Draw(outline).multiline_text(**place, stroke_width=1)
    luma = 16 + 219 * np.asarray(letters, np.float32) / 255
    alpha = np.maximum(np.asarray(outline, np.float32), _BOX_ALPHA) / 255
    top = max(0, height - box_height - _even(height // 20))
    left = _even((width - box_width) // 2)
    return CaptionOverlay(top, left, luma, alpha, alpha.reshape(box_height // 2, 2, box_width // 2, 2).mean((1, 3)))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, max_width: float) -> str:
    """Break the text into lines that fit; what exceeds the last line ends in an ellipsis."""
    num_chars = max(4, int(len(text) * max_width / max(font.getlength(text), 1)))
    lines = textwrap.wrap(text, num_chars, max_lines=_MAX_LINES, placeholder=" ...")
    while num_chars > 4 and max(map(font.getlength, lines)) > max_width:
        num_chars -= 1
        lines = textwrap.wrap(text, num_chars, max_lines=_MAX_LINES, placeholder=" ...")
    return "\n".join(lines)


def _even(number: int) -> int:
    return number - number % 2
