"""The small tokenizer of the embedded model: Qwen's markers, bytes, and whole words for what a match needs.

Any text can be encoded, by its bytes if need be; the words of the commentary and of the turn format are one token each.
A score is two tokens (" 2", "-1"), and a time label has one for two digits, so that neither is mistaken for the other.
"""

from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamingvlm.pitch.commentator import say
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

# Digits go in pairs, but for the halves of a score; hyphenated words and the fixed parts of a time label do not split.
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
_MAX_VOCABULARY = 1024  # never reached: training ends when every word is one token


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the words of the commentary; the same on every machine."""
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
    """Each line in every colour, club and score, as it stands after another line, and the introductions."""
    lines = [" " + say(_second(*facts)) for facts in product(KINDS, COLOURS, CLUBS, range(10))]
    introductions = [introduction((club, club), (colour, colour)) for club, colour in product(CLUBS, COLOURS)]
    return lines + introductions + [f"{pair:02d}" for pair in range(100)] + list(_MARKUP)


def _second(kind, colour: str, club: str, goals: int) -> PitchSecond:
    return PitchSecond(0, kind, 0, None, (goals, goals), (colour, colour), (club, club), keyframes=())
