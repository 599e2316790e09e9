"""Video preprocessing and the vision tower: from frames to embeddings of the language model, in torch alone.

Dimensions: F frames, H x W pixels, t x h x w patches before merging, V tokens after merging, D the hidden size of the
language model.

Checkpoints were trained with one of two resizes: the Hugging Face video processor's (bicubic on integers), or that of
qwen-vl-utils (bicubic in float, then rounded, with a cap on the pixels of a frame). They differ on sharp edges, where
the integer one clips overshoot between its two passes.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from streamingvlm.errors import VideoError
from streamingvlm.model.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Resize = Literal["processor", "qwen_vl_utils"]
Grid = tuple[int, int, int]

MIN_FRAME_TOKENS = 100
MAX_FRAME_TOKENS = 768
_MAX_ASPECT_RATIO = 200
# qwen-vl-utils 0.0.14: a video may fill 0.9 of a context of 128000 tokens, two frames share a token, and the cap is at
# least 1.05 times the smallest frame.
_MAX_VIDEO_TOKENS = 0.9 * 128_000
_FRAMES_PER_TOKEN = 2
_MIN_CAP_FACTOR = 1.05


class VisionFeatures(NamedTuple):
    """Output of the vision tower for some frames.

    embeddings: [V, D], in the order of the merged grid: time, then rows, then columns.
    grid: (t, h, w) after merging, t * h * w == V.
    deepstack: more [V, D] features, which Qwen3-VL adds after its first layers; empty for other families.
    """

    embeddings: torch.Tensor
    grid: Grid
    deepstack: tuple[torch.Tensor, ...] = ()

    def rows(self, first: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Return the features of the tokens [first, stop): embeddings, then each level of deepstack."""
        return tuple(level[first:stop] for level in (self.embeddings, *self.deepstack))


def deepstack_inputs(is_vision: torch.Tensor, deepstack: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the text model's arguments for deepstack features, each [V, D]; is_vision: [B, T], True at V tokens."""
    return {"visual_pos_masks": is_vision, "deepstack_visual_embeds": list(deepstack)} if deepstack else {}


class VisionEncoder:
    """The vision tower of a loaded model: from frames to merged embeddings.

    The tower attends within one temporal patch only. Encoding a video turn by turn is therefore exactly the same as
    encoding it at once, if a turn holds a whole number of temporal patches.

    min_pixels, max_pixels, resize: as `preprocess` takes them.
    """

    def __init__(
        self,
        tower: "PreTrainedModel",
        family: Family,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        resize: Resize = "processor",
    ):
        self.tower = tower
        self.family = family
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.resize = resize

    def largest_grid(self, num_frames: int) -> Grid:
        """Return a merged grid (t, h, w) with the most tokens that ``num_frames`` frames of any size can have."""
        max_pixels = MAX_FRAME_TOKENS * self.family.size_factor**2 if self.max_pixels is None else self.max_pixels
        num_steps = math.ceil(num_frames / self.family.temporal_patch_size)
        return num_steps, 1, int(max_pixels) // self.family.size_factor**2

    def grid(self, num_frames: int, height: int, width: int) -> Grid:
        """Return the merged grid (t, h, w) of frames of this size in pixels."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        size = resized_size(num_frames, height, width, family=self.family, resize=self.resize, **limits)
        num_steps = math.ceil(num_frames / self.family.temporal_patch_size)
        return num_steps, *(side // self.family.size_factor for side in size)

    def features(self, frames: torch.Tensor, *, detail: float = 1.0) -> VisionFeatures:
        """Preprocess and encode uint8 frames [F, 3, H, W].

        detail: fraction of the usual pixels of a frame; below 1, ``min_pixels`` does not apply.
        Raises VideoError for frames of another type or shape.
        """
        return self.features_of(*self.patches(frames, detail=detail))

    def patches(self, frames: torch.Tensor, *, detail: float = 1.0) -> tuple[torch.Tensor, Grid]:
        """Preprocess uint8 frames as `features` does; return pixel values and their grid (t, h, w) in patches."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        if detail < 1:
            _check_frames(frames)
            num_frames, _, *size = frames.shape
            usual = resized_size(num_frames, *size, family=self.family, resize=self.resize, **limits)
            pixels_per_token = self.family.size_factor**2
            max_pixels = max(pixels_per_token, int(math.prod(usual) * detail))
            limits = {"min_pixels": pixels_per_token, "max_pixels": max_pixels}
        return preprocess(frames, family=self.family, resize=self.resize, **limits)

    def features_of(self, pixels: torch.Tensor, grid: Grid) -> VisionFeatures:
        """Encode one preprocessed video: pixel values and their grid (t, h, w) in patches."""
        return self.features_of_many([(pixels, grid)])[0]

    @torch.no_grad()
    def features_of_many(self, videos: Sequence[tuple[torch.Tensor, Grid]]) -> list[VisionFeatures]:
        """Encode several preprocessed videos, of any sizes, in one forward pass."""
        merge, device = self.family.merge_size, self.tower.device
        output = self.tower(
            torch.cat([pixels for pixels, _ in videos]).to(device, self.tower.dtype, non_blocking=True),
            grid_thw=torch.tensor([grid for _, grid in videos], device=device),
        )
        merged = [(t, h // merge, w // merge) for _, (t, h, w) in videos]
        sizes = [math.prod(grid) for grid in merged]
        levels = (output.pooler_output, *(getattr(output, "deepstack_features", None) or ()))
        parts = zip(*(level.split(sizes) for level in levels), strict=True)
        return [VisionFeatures(part[0], grid, part[1:]) for part, grid in zip(parts, merged, strict=True)]


def preprocess(
    frames: torch.Tensor,
    *,
    family: Family,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize: Resize = "processor",
) -> tuple[torch.Tensor, Grid]:
    """Resize and normalise uint8 frames [F, 3, H, W] and cut them into the patches that the vision tower takes.

    min_pixels, max_pixels: limits of one resized frame; by default 100 and 768 merged tokens.
    An incomplete last temporal patch is filled by repeating the last frame.

    Returns float32 pixel values [t * h * w, 3 * temporal patch * patch * patch], ordered by merged token, and the grid
    (t, h, w) in patches. Raises VideoError for frames of another type or shape.
    """
    _check_frames(frames)
    num_frames, _, height, width = frames.shape
    size = resized_size(
        num_frames, height, width, family=family, min_pixels=min_pixels, max_pixels=max_pixels, resize=resize
    )
    resized = _RESIZERS[resize](frames, size, family.interpolation)
    return _patchify(_normalise(_fill_last_patch(resized, family.temporal_patch_size), family), family)


def resized_size(
    num_frames: int,
    height: int,
    width: int,
    *,
    family: Family,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resize: Resize = "processor",
) -> tuple[int, int]:
    """Return the height and width to which `preprocess` resizes frames with the same arguments."""
    min_pixels = MIN_FRAME_TOKENS * family.size_factor**2 if min_pixels is None else min_pixels
    max_pixels = MAX_FRAME_TOKENS * family.size_factor**2 if max_pixels is None else max_pixels
    if resize == "qwen_vl_utils":
        max_pixels = capped_max_pixels(
            num_frames, factor=family.size_factor, min_pixels=min_pixels, max_pixels=max_pixels
        )
    return smart_size(height, width, factor=family.size_factor, min_pixels=min_pixels, max_pixels=max_pixels)


def smart_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Return the height and width nearest to a frame's own that are multiples of ``factor`` within the pixel limits.

    The rule of the Qwen2-VL processor. Raises VideoError for a frame more than 200 times as long as wide.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise VideoError(
            f"a frame of {width}x{height} pixels is more than {_MAX_ASPECT_RATIO} times as long as wide; crop the video"
        )
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif math.prod(sides) < min_pixels:
        stretch = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * stretch / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def capped_max_pixels(num_frames: int, *, factor: int, min_pixels: int, max_pixels: float) -> float:
    """Return qwen-vl-utils' limit of the pixels of one of ``num_frames`` frames when ``max_pixels`` is requested."""
    share = _MAX_VIDEO_TOKENS * factor**2 / num_frames * _FRAMES_PER_TOKEN
    cap = max(min(MAX_FRAME_TOKENS * factor**2, share), int(min_pixels * _MIN_CAP_FACTOR))
    return min(max_pixels, cap)


def _check_frames(frames: torch.Tensor):
    if not isinstance(frames, torch.Tensor):
        raise VideoError(f"frames are a {type(frames).__name__}, expected a uint8 tensor [F, 3, H, W]; convert them")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise VideoError(
            f"frames are {str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}, expected uint8 [F, 3, H, W]; "
            "give RGB frames, channels first, of values 0 to 255"
        )


def _resize_integer(frames: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    # torch has the integer kernel on CPUs only; elsewhere the video processor resizes in float as well.
    if frames.device.type != "cpu":
        return _resize_float(frames, size, mode)
    return F.interpolate(frames, size, mode=mode, antialias=True)


def _resize_float(frames: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    resized = F.interpolate(frames.float(), size, mode=mode, antialias=True)
    return resized.clamp_(0, 255).round_().to(torch.uint8)


_RESIZERS = {"processor": _resize_integer, "qwen_vl_utils": _resize_float}


def _fill_last_patch(frames: torch.Tensor, temporal_patch_size: int) -> torch.Tensor:
    num_missing = -frames.shape[0] % temporal_patch_size
    return torch.cat([frames, frames[-1:].expand(num_missing, -1, -1, -1)])


def _normalise(frames: torch.Tensor, family: Family) -> torch.Tensor:
    # As the video processor does: folding the rescaling by 1/255 into mean and deviation decides the last bit.
    mean, std = (
        torch.tensor(values, device=frames.device).mul_(255.0).view(3, 1, 1)
        for values in (family.image_mean, family.image_std)
    )
    return frames.float().sub_(mean).div_(std)


def _patchify(frames: torch.Tensor, family: Family) -> tuple[torch.Tensor, Grid]:
    patch, merge = family.patch_size, family.merge_size
    num_frames, channels, height, width = frames.shape
    t, h, w = num_frames // family.temporal_patch_size, height // patch, width // patch
    blocks = frames.view(
        t, family.temporal_patch_size, channels, h // merge, merge, patch, w // merge, merge, patch
    )  # time, frame, channel, block row, row, y, block column, column, x
    rows = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(t * h * w, -1), (t, h, w)
