"""Tiny random checkpoints of each family, and random frames for them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NUM_TOKENS = 320
TOKENIZER_TEXT = (
    "system user assistant previous text You are a helpful assistant. Time=0.0-1.0s says the ball is in ..."
)

_TEXT = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
_VISION = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
_QWEN2_VISION = {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
_QWEN3_ROPE = {**_TEXT["rope_parameters"], "mrope_interleaved": True}
TINY = {
    "qwen2_vl": {"text_config": _TEXT, "vision_config": _QWEN2_VISION},
    "qwen2_5_vl": {
        "text_config": _TEXT,
        "vision_config": {**_VISION, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "num_hidden_layers": 3, "rope_parameters": _QWEN3_ROPE},
        "vision_config": {**_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
    },
}


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Build a byte-level tokenizer of a few tokens, with the chat and vision markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    return fast


def save_tiny_checkpoint(folder: Path, model_type: str) -> Path:
    """Write a random checkpoint of a family, about 100,000 parameters, in the layout of Hugging Face."""
    tokenizer = tiny_tokenizer()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }
    text_config = {**TINY[model_type]["text_config"], "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    parts = {**TINY[model_type], "text_config": text_config}
    config = transformers.AutoConfig.for_model(model_type, **parts, **ids, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def frames(seed: int, num_frames: int = 2, height: int = 56, width: int = 84) -> torch.Tensor:
    """Draw random frames, uint8 [F, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)
