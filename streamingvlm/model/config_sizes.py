"""Sizes in config.json that have to agree with each other, and that no weight has to agree with.

transformers loads a checkpoint that contradicts itself, and fails, or is silently wrong, at the first video.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from streamingvlm.errors import CheckpointError

_NUM_AXES = 3  # of rotary positions: time, rows, columns


def check_sizes(config: PreTrainedConfig, folder: Path):
    """Raise CheckpointError, in one line, for the first contradiction in a checkpoint's config."""
    for problem in (*_text_problems(config.text_config), *_vision_problems(config)):
        raise CheckpointError(f"{folder / 'config.json'} has {problem}; take the config.json of these weights")


def _text_problems(text: PreTrainedConfig) -> Iterator[str]:
    num_heads, num_key_heads = text.num_attention_heads, text.num_key_value_heads
    if num_heads < 1 or num_key_heads < 1 or num_heads % num_key_heads:
        yield f"num_attention_heads={num_heads}, expected a multiple of num_key_value_heads={num_key_heads}"
        return
    half = (getattr(text, "head_dim", None) or text.hidden_size // num_heads) // 2
    section = text.rope_parameters.get("mrope_section")
    if not isinstance(section, list) or len(section) != _NUM_AXES or min(section) < 0 or sum(section) != half:
        yield f"mrope_section={section}, expected {_NUM_AXES} numbers that add up to {half}, half of a head"


def _vision_problems(config: PreTrainedConfig) -> Iterator[str]:
    vision, hidden_size = config.vision_config, config.text_config.hidden_size
    is_first_family = hasattr(vision, "embed_dim")  # Qwen2-VL names the tower's own size embed_dim
    output, width = ("hidden_size", vision.embed_dim) if is_first_family else ("out_hidden_size", vision.hidden_size)
    if getattr(vision, output) != hidden_size:
        yield f"vision_config.{output}={getattr(vision, output)}, expected the text model's {hidden_size}"
    if vision.num_heads < 1 or width % vision.num_heads or width // vision.num_heads % 4:
        yield f"vision_config.num_heads={vision.num_heads}, expected heads of a multiple of 4 of {width} channels"
    for name in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if outside := [index for index in getattr(vision, name, None) or () if not 0 <= index < vision.depth]:
            yield f"vision_config.{name} with {outside[0]}, expected layers below depth={vision.depth}"
    if getattr(vision, "tokens_per_second", 1) <= 0:
        yield f"vision_config.tokens_per_second={vision.tokens_per_second}, expected a number above 0"
