"""The tokenizer of the embedded model: Qwen's special tokens, bytes, and one token per word of the commentary.

Byte-level BPE can encode any text; each word of the commentary and of the turn format is one token. A score is two
tokens (" 2", "-1") and a time label has a token per two digits, so that the two share no tokens.
"""

from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamingvlm.pitch.commentary_lines import reference_line
from streamingvlm.pitch.world import CLUBS, COLOURS, KINDS, PitchSecond, introduction

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Digits form pairs, except in scores; hyphenated words and the fixed parts of a time label are not split.
_PIECES = Regex(r"\.\p{N}-|\.\p{N}s|Time=| ?\p{L}+(?:-\p{L}+)*\n?|[ -]\p{N}|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s")
_MARKUP = (
    "Time=0.0-0.0s",
    "system\n",
    "You are a helpful assistant.",
    "previous text\n",
    "user\n",
    "assistant\n",
    " ...",
)
_MAX_VOCABULARY = 1024  # Never reached: BPE training ends when every word is one token.


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the commentary; the result is the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=END_OF_TEXT,
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    """Return every line in every colour, club and score, with its leading space, and the introductions."""
    lines = [" " + reference_line(_second(*values)) for values in product(KINDS, COLOURS, CLUBS, range(10))]
    introductions = [introduction((club, club), (colour, colour)) for club, colour in product(CLUBS, COLOURS)]
    return lines + introductions + [f"{pair:02d}" for pair in range(100)] + list(_MARKUP)


def _second(kind, colour: str, club: str, goals: int) -> PitchSecond:
    return PitchSecond(0, kind, 0, None, (goals, goals), (colour, colour), (club, club), keyframes=())
