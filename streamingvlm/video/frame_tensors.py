"""Convert frames, as the decoders or a user have them, to the tensor of a turn: uint8 [F, 3, H, W], RGB."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch.nn.functional import interpolate

from streamingvlm.errors import VideoError
from streamingvlm.video.sampling_grid import SamplingGrid
from streamingvlm.video.source import DecodedFrame
from streamingvlm.video.video_turn import VideoTurn

Frame = torch.Tensor | np.ndarray | Image
"""One RGB frame: uint8 [3, H, W] or [H, W, 3], or a PIL image."""

Frames = Frame | Sequence[Frame]
"""The frames of one turn: uint8 [F, 3, H, W] or [F, H, W, 3], a list of frames, or a single frame."""

# Modes that `Image.convert("RGB")` converts without loss, except for transparency.
_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def make_turn(
    index: int, sampled: Sequence[DecodedFrame], before: DecodedFrame | None, grid: SamplingGrid
) -> VideoTurn:
    """Convert the frames of one turn; `before` is the last frame of the turn before."""
    rgb = {frame: frame.rgb() for frame in sampled}
    height, width = rgb[sampled[-1]].shape[1:]
    # Stacked channels-last, as each frame is in memory; torch.cat would make the result channels-first.
    frames = [fit(rgb[frame][None], height, width)[0].permute(1, 2, 0) for frame in sampled]
    num_repeated = sum(frame is earlier for earlier, frame in pairwise([before, *sampled]))
    start_s, end_s = grid.turn_start_s(index), grid.turn_start_s(index + 1)
    return VideoTurn(index, start_s, end_s, torch.stack(frames).permute(0, 3, 1, 2), num_repeated)


def channels_first(image: np.ndarray) -> torch.Tensor:
    """View an image [H, W, 3] as [3, H, W]; its memory stays channels-last, which resizes twice as fast."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def fit(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames, uint8 [F, 3, H, W], to the resolution of newer frames."""
    if frames.shape[2:] == (height, width):
        return frames
    return interpolate(frames, size=(height, width), mode="bilinear", antialias=True)


def to_frames(frames: Frames) -> torch.Tensor:
    """Convert the frames of one turn, in any form of `Frames`, to uint8 [F, 3, H, W] on their device.

    The axis of length 3 holds the channels; if two could, the first of a tensor and the last of an array. PIL images
    are converted to RGB, without transparency. Memory is shared where possible.
    Raises VideoError for another dtype, shape or type, and for frames of different sizes.
    """
    if isinstance(frames, list | tuple):
        return _stack([to_frame(frame) for frame in frames])
    if isinstance(frames, torch.Tensor | np.ndarray) and frames.ndim == 4:
        return _rgb_tensor(frames)
    return to_frame(frames)[None]


def to_frame(frame: Frame) -> torch.Tensor:
    """Convert one frame to uint8 [3, H, W], as `to_frames` does."""
    if isinstance(frame, Image):
        frame = _pil_array(frame)
    if not isinstance(frame, torch.Tensor | np.ndarray):
        raise VideoError(
            f"a frame is {_described(frame)}, expected a uint8 tensor, a uint8 array or a PIL image; convert it, and "
            "stop at the end of a source"
        )
    if frame.ndim != 3:
        raise _shape_error(frame)
    return _rgb_tensor(frame)


def is_frame(item: object) -> bool:
    """Return True for one frame, False for the frames of a turn and anything else."""
    return isinstance(item, Image) or (isinstance(item, torch.Tensor | np.ndarray) and item.ndim == 3)


def group_frames(items: Iterable[VideoTurn | Frames], num_frames: int) -> Iterator[VideoTurn | Frames]:
    """Yield turns as they are, and single frames, copied, in groups of `num_frames`.

    The last frame fills up the last group. Raises VideoError for something that cannot be iterated.
    """
    group: list[torch.Tensor] = []
    for item in _iterable(items):
        if is_frame(item):
            group.append(to_frame(item).clone())  # a camera may write its next frame to the same memory
        if group and (len(group) == num_frames or not is_frame(item)):
            yield _filled(group, num_frames)
            group = []
        if not is_frame(item):
            yield item
    if group:
        yield _filled(group, num_frames)


def _iterable(items: Any) -> Iterable[Any]:
    if is_frame(items):
        return [items]
    if not isinstance(items, Iterable):
        raise VideoError(
            f"the source is {_described(items)}, expected a path, an address, a camera's number, PushedFrames or an "
            "iterable of frames; give one of them"
        )
    return items


def _filled(group: list[torch.Tensor], num_frames: int) -> torch.Tensor:
    return _stack(group + group[-1:] * (num_frames - len(group)))


def _stack(frames: Sequence[torch.Tensor]) -> torch.Tensor:
    sizes = sorted({f"{frame.shape[2]} x {frame.shape[1]}" for frame in frames})
    if not sizes:
        raise VideoError("a turn has no frame; give the frames of one turn")
    if len(sizes) > 1:
        raise VideoError(f"the frames of a turn have different sizes ({', '.join(sizes)}); resize them to one")
    return torch.stack(list(frames))


def _pil_array(image: Image) -> np.ndarray:
    if image.mode not in _PIL_MODES:
        raise VideoError(f"a frame is a PIL image of mode {image.mode}, expected 8 bits a channel; scale it to mode L")
    return np.array(image.convert("RGB"))


def _rgb_tensor(frames: torch.Tensor | np.ndarray) -> torch.Tensor:
    """View [..., 3, H, W] or [..., H, W, 3] as uint8 [..., 3, H, W]."""
    _check_dtype(frames)
    first, last = frames.ndim - 3, frames.ndim - 1
    order = (last, first) if isinstance(frames, np.ndarray) else (first, last)
    axis = next((axis for axis in order if frames.shape[axis] == 3), None)
    if axis is None or 0 in frames.shape:
        raise _shape_error(frames)
    if isinstance(frames, np.ndarray):
        can_share = frames.flags.writeable and min(frames.strides) >= 0
        frames = torch.from_numpy(frames if can_share else frames.copy())
    return frames.movedim(axis, first)


def _check_dtype(frames: torch.Tensor | np.ndarray):
    is_array = isinstance(frames, np.ndarray)
    if frames.dtype in (torch.uint8, np.uint8):
        return
    is_float = frames.dtype.kind == "f" if is_array else frames.is_floating_point()
    cast = "astype(np.uint8)" if is_array else "to(torch.uint8)"
    remedy = f"(frames * 255).round().{cast}" if is_float else f"frames.{cast}"
    scale = "of values from 0 to 1" if is_float else "of values from 0 to 255"
    raise VideoError(f"frames are {_described(frames)}, expected uint8; convert frames {scale} with {remedy}")


def _shape_error(frames: torch.Tensor | np.ndarray) -> VideoError:
    channels = frames.shape[-3::2]
    if frames.ndim == 2 or 1 in channels:
        remedy = "repeat the values of grey frames in three channels"
    elif 4 in channels:
        remedy = "drop the alpha channel of RGBA frames"
    else:
        remedy = "give RGB frames, and several of them as [F, 3, H, W], [F, H, W, 3] or a list"
    return VideoError(f"a frame is {_described(frames)}, expected uint8 [3, H, W] or [H, W, 3]; {remedy}")


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
