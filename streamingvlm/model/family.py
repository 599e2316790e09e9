"""The supported model families, as data: their differences that config.json does not state."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """The video input of one family of checkpoints.

    model_type: the name in config.json.
    class_name: the transformers class of the whole model.
    patch_size, temporal_patch_size: pixels on a side, and frames, of one vision patch.
    merge_size: patches on a side that merge into one token.
    tokens_per_second: rotary positions per second of video (the name in config.json); None if each temporal patch takes
        one position, whatever its duration.
    turn_format: the turn format of its checkpoints, unless a checkpoint states another.
    image_mean, image_std: normalisation of the three channels, for values in [0, 1].
    interpolation: of the resize to whole tokens, by torch's name.
    limits_whole_video: its video processor limits the pixels of all frames together, not of each.
    """

    model_type: str
    class_name: str
    patch_size: int
    temporal_patch_size: int = 2
    merge_size: int = 2
    tokens_per_second: float | None = None
    turn_format: str = "time-range-1"
    image_mean: tuple[float, float, float] = _CLIP_MEAN
    image_std: tuple[float, float, float] = _CLIP_STD
    interpolation: str = "bicubic"
    limits_whole_video: bool = False

    @property
    def size_factor(self) -> int:
        """Pixels on a side of one merged token; frame sizes are multiples of it."""
        return self.patch_size * self.merge_size

    def temporal_step(self, patch_s: float) -> float:
        """Rotary positions between two temporal patches ``patch_s`` seconds apart."""
        return 1.0 if self.tokens_per_second is None else patch_s * self.tokens_per_second

    def with_vision_config(self, vision_config: Mapping[str, Any]) -> "Family":
        """Return the family with the sizes stated in the vision part of a checkpoint's config.json."""
        stated = {field: vision_config[key] for key, field in _STATED_IN_CONFIG.items() if key in vision_config}
        return replace(self, **stated)

    def with_turn_format(self, name: str | None) -> "Family":
        """Return the family with the turn format that a checkpoint states, if any."""
        return replace(self, turn_format=name or self.turn_format)


# Key in the vision part of config.json -> field of Family. Only Qwen2.5-VL has the last.
_STATED_IN_CONFIG = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "spatial_merge_size": "merge_size",
    "tokens_per_second": "tokens_per_second",
}

# The temporal axis counts patches in Qwen2-VL and time in Qwen2.5-VL (4 positions per second unless config.json says
# otherwise). Qwen3-VL writes time as text, so its temporal axis counts patches as well.
FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "Qwen2VLForConditionalGeneration", patch_size=14),
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", patch_size=14, tokens_per_second=4),
        Family(
            "qwen3_vl",
            "Qwen3VLForConditionalGeneration",
            patch_size=16,
            turn_format="patch-seconds-1",
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
            limits_whole_video=True,
        ),
    )
}
