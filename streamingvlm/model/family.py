"""The families of checkpoints that can stream, as data: what differs between them and is not in their config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """How one family of checkpoints sees video.

    model_type: the name in config.json.
    class_name: the class of transformers that holds the whole model.
    patch_size, temporal_patch_size: pixels, and frames, that one vision patch spans.
    merge_size: patches on a side that become one token of the language model.
    tokens_per_second: rotary positions that one second of video spans; None where time is not counted in seconds
        and each temporal patch is one position.
    turn_format: name of the turn format that its checkpoints know time in, unless one states another.
    image_mean, image_std: of the three channels, of values in [0, 1].
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

    @property
    def size_factor(self) -> int:
        """Pixels on a side of one merged token; frame sizes are multiples of it."""
        return self.patch_size * self.merge_size

    def temporal_step(self, patch_s: float) -> float:
        """Rotary positions between two temporal patches that lie ``patch_s`` seconds apart."""
        return 1.0 if self.tokens_per_second is None else patch_s * self.tokens_per_second

    def with_vision_config(self, vision_config: Mapping[str, Any]) -> "Family":
        """Return the family with the sizes that the vision part of a checkpoint's config.json states."""
        stated = {field: vision_config[key] for key, field in _STATED_IN_CONFIG.items() if key in vision_config}
        return replace(self, **stated)

    def with_turn_format(self, name: str | None) -> "Family":
        """Return the family with the turn format that a checkpoint states, if it does."""
        return replace(self, turn_format=name or self.turn_format)


# Key of the vision part of config.json -> field of Family. Only Qwen2.5-VL has the last.
_STATED_IN_CONFIG = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "spatial_merge_size": "merge_size",
    "tokens_per_second": "tokens_per_second",
}

# Qwen2-VL counts temporal patches; Qwen2.5-VL counts seconds (4 positions each where the config is silent); Qwen3-VL
# tells time in text, so its temporal patches are told apart by their order alone.
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
        ),
    )
}
