"""The tokenizer of the embedded model: one token per word, numbers distinct from scores, and any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from streamingvlm.pitch.tokenizer import SPECIAL_TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (" throw-in to blue, still 2-1 ...", [" throw-in", " to", " blue", ",", " still", " 2", "-1", " ..."]),
        (" goal for red! Rovers home 0-9", [" goal", " for", " red", "!", " Rovers", " home", " 0", "-9"]),
        ("Time=1205.0-1206.0s", ["Time=", "12", "05", ".0-", "12", "06", ".0s"]),
        ("<|im_start|>assistant\n", ["<|im_start|>", "assistant\n"]),
    ],
)
def test_the_words_of_a_match_are_one_token_each(tokenizer, text, pieces):
    assert [tokenizer.decode([token]) for token in tokenizer.encode(text)] == pieces


@settings(max_examples=30)
@given(st.text())
def test_any_text_survives_a_round_trip(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=True)) == text


def test_markers_are_special_unless_a_user_writes_them(tokenizer):
    for marker in SPECIAL_TOKENS:
        assert len(tokenizer.encode(marker)) == 1
        assert len(tokenizer.encode(marker, split_special_tokens=True)) > 1


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab() == build_tokenizer().get_vocab()
