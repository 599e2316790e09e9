"""The architecture of the embedded model: Qwen2.5-VL in miniature."""

from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

# Height and width in pixels. One attention window of the vision tower then covers a frame, so all blocks see all of it.
FRAME_SIZE = 112
TURN_GRID = (1, 4, 4)  # merged tokens (t, h, w) of a turn; a token covers 28 x 28 pixels

_HEAD_SIZE = 64
# Time, row and column share the 32 rotary pairs of a head. A small base separates the few rows and columns.
_MROPE_SECTION = [8, 12, 12]
_ROPE_THETA = 1e4


def tiny_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 256,
    num_layers: int = 4,
    intermediate_size: int = 768,
    vision_hidden_size: int = 128,
    vision_depth: int = 3,
) -> Qwen2_5_VLConfig:
    """Configure a Qwen2.5-VL of a few million parameters around a tokenizer.

    hidden_size, num_layers, intermediate_size: of the language model, with heads of size 64 and half as many for keys
        and values.
    vision_hidden_size, vision_depth: of the vision tower, with heads of size 32.
    """
    num_heads = hidden_size // _HEAD_SIZE
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": max(1, num_heads // 2),
            "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA, "mrope_section": _MROPE_SECTION},
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": vision_hidden_size // 32,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": list(range(vision_depth)),
            "window_size": FRAME_SIZE,
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )


def build_model(config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Initialize a model from torch's global random stream."""
    return Qwen2_5_VLForConditionalGeneration(config)
