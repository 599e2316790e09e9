"""Training aligned with streaming: a chunk is, token for token and place for place, what a stream has in its cache.

A session hears a transcript, which leaves it as if it had said it (tests/inference/test_hearing.py). Let the cache
begin with turn c at the end of turn n (it keeps the turns and the vision of the same last seconds). Then it holds
exactly the chunk of the turns c to n with all that was said before c as previous text, cut to sink + window: the same
ids, kinds of token, labels and positions. A chunk of training that begins with turn c is longer than a window; all that
the cache holds is its beginning.
"""

import string
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import frames
from transformers import AutoTokenizer

from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.config import CacheConfig, VideoConfig
from streamingvlm.data.chunks import chunk_tokens, plan_chunks, previous_ids
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.family import FAMILIES
from streamingvlm.model.loading import load_model
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.examples import IGNORED_LABEL, example_from
from streamingvlm.turns import Tokens, Turn, TurnFormat
from streamingvlm.video.video_turn import VideoTurn

# Qwen's tokenizer reads all text in Unicode's composed form.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6).map(
    lambda word: unicodedata.normalize("NFC", word)
)
ORDINARY_WORDS = st.text(string.ascii_letters + string.digits + ".,!?'-", min_size=1, max_size=6)
SILENCE = st.just("")


def lines_of(words, *, max_words: int = 4):
    return SILENCE | st.lists(words, min_size=1, max_size=max_words).map(" ".join)


class Stream:
    """A session that hears a transcript, and what training makes of the same transcript."""

    def __init__(self, model, lines: list[str], *, start_s: float = 0.0, cache, video, query="", previous_text=""):
        self.lines, self.query, self.previous_text, self.start_s = lines, query, previous_text, start_s
        texts = {"query": query, "previous_text": previous_text}
        self.session = StreamingSession(model, cache=cache, video=video, sampling={"max_new_tokens": 200}, **texts)
        self.cache, self.video, self.turns = cache, video, self.session.format
        self.grids = []

    def step(self, picture: torch.Tensor):
        index = self.session.num_turns
        self.session.step(VideoTurn(index, *self.when(index), picture), reply=self.lines[index])
        self.grids.append(self.session.vision_encoder.features(picture).grid)

    def when(self, index: int) -> tuple[float, float]:
        return self.start_s + index * self.video.turn_s, self.start_s + (index + 1) * self.video.turn_s

    def first_turn_kept(self, last: int) -> int:
        if self.cache.policy == "full":
            return 0
        return max(0, last + 1 - max(1, int(self.cache.vision_window_s / self.video.turn_s + 1e-6)))

    def chunk(self, first: int, last: int) -> Tokens:
        """The training chunk of the turns ``first`` to ``last``."""
        seconds = [Turn(index, *self.when(index), self.grids[index]) for index in range(first, last + 1)]
        limits = {
            "sink_tokens": self.cache.text_sink_tokens,
            "window_tokens": self.cache.text_window_tokens,
            "step_tokens": self.cache.text_step_tokens,
        }
        before = previous_ids(self.turns, self.previous_text, self.lines[:first], **limits)
        return chunk_tokens(self.turns, seconds, self.lines[first : last + 1], before, query=self.query)

    def held(self) -> Tokens:
        return Tokens(tuple(self.session.inspect().ids), self.session.layout.segments)


def kinds(tokens: Tokens) -> list:
    return [segment.kind for segment in tokens.segments for _ in range(segment.num_tokens)]


def assert_same(held: Tokens, positions: torch.Tensor, chunk: Tokens):
    """What the cache holds is how the chunk begins; a whole chunk if it is as long."""
    num_tokens = len(held)
    assert held.ids == chunk.ids[:num_tokens]
    assert kinds(held) == kinds(chunk)[:num_tokens]
    assert held.supervised() == chunk.supervised()[:num_tokens]
    example = example_from("chunk", chunk, torch.empty(0))
    assert torch.equal(positions, example.position_ids[:, :num_tokens])


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    return {name: load_model(tiny_checkpoint(name), device="cpu") for name in FAMILIES}


RATES = [(2.0, 1.0), (4.0, 1.0), (3.0, 1.0), (4.0, 0.5), (2.0, 2.0)]


@pytest.mark.parametrize("model_type", FAMILIES)
@settings(max_examples=8)
@given(data=st.data())
def test_a_cache_holds_the_chunk_that_training_shows(models, model_type, data):
    lines = data.draw(st.lists(lines_of(ORDINARY_WORDS), min_size=1, max_size=14))
    fps, turn_s = data.draw(st.sampled_from(RATES))
    video = VideoConfig(fps=fps, turn_s=turn_s, min_pixels=1, max_pixels=84 * 84)
    window_s = data.draw(st.sampled_from([1.0, 2.0, 3.5, 5.0, 16.0]))
    is_full = data.draw(st.sampled_from([False, False, True]))
    cache = CacheConfig(
        policy="full" if is_full else "streaming",
        recompute=data.draw(st.booleans()),
        text_sink_tokens=10**6 if is_full else data.draw(st.integers(0, 12)),
        text_window_tokens=data.draw(st.integers(0, 12)),
        text_step_tokens=data.draw(st.integers(1, 14)),
        vision_window_s=window_s,
        turn_window_s=window_s,
    )
    stream = Stream(
        models[model_type],
        lines,
        start_s=data.draw(st.sampled_from([0.0, 3.5, 3599.0])),
        cache=cache,
        video=video,
        query=data.draw(SILENCE | lines_of(WORDS)),
        previous_text=data.draw(SILENCE | lines_of(WORDS, max_words=12)),
    )
    for last in range(len(lines)):
        stream.step(frames(last, video.num_frames, data.draw(st.sampled_from([28, 56]))))
        chunk = stream.chunk(stream.first_turn_kept(last), last)
        assert len(stream.held()) == len(chunk)
        assert_same(stream.held(), stream.session.inspect().positions, chunk)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_chunks_of_a_plan_begin_as_the_cache_stood(models, model_type):
    """Over several windows: each planned chunk is met by the stream, the moment the window begins where it does."""
    lines = [["", "the ball is in", "previous text", "a user says the ball is in the system"][i % 4] for i in range(20)]
    video = VideoConfig(min_pixels=1, max_pixels=84 * 84)
    cache = CacheConfig(text_sink_tokens=20, text_window_tokens=30, vision_window_s=4.0, turn_window_s=4.0)
    texts = {"query": "Who has the ball?", "previous_text": "The match begins."}
    stream = Stream(models[model_type], lines, cache=cache, video=video, **texts)
    stream.grids = [stream.session.vision_encoder.features(frames(0)).grid] * len(lines)
    chunks = {
        chunk.start: stream.chunk(chunk.start, chunk.stop - 1)
        for chunk in plan_chunks(20, chunk_turns=6, overlap_turns=3)
    }
    met = []
    for last in range(len(lines)):
        stream.step(frames(last))
        first = stream.first_turn_kept(last)
        if first in chunks:
            assert_same(stream.held(), stream.session.inspect().positions, chunks[first])
            met.append((first, last))
    assert met == [(0, 0), (0, 1), (0, 2), (0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 18)]
    whole = sum(len(stream.turns.speech_ids(line)) for line in lines[:15])
    assert whole > 20 + 30, "the text must have been cut for this to say anything of the cut"


@pytest.fixture(scope="module")
def formats(models, carried_golden):
    tokenizers = {
        "tiny": models["qwen2_vl"].tokenizer,
        "recorded": AutoTokenizer.from_pretrained(carried_golden / "model"),
    }
    return {
        (name, model_type): TurnFormat.of(tokenizer, FAMILIES[model_type], VideoConfig())
        for name, tokenizer in tokenizers.items()
        for model_type in FAMILIES
    }


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tokenizer", ["tiny", "recorded"])
@given(lines=st.lists(lines_of(WORDS), min_size=1, max_size=8), query=lines_of(WORDS), before=lines_of(WORDS))
def test_what_is_asked_of_the_model_spells_the_transcript(formats, tokenizer, model_type, lines, query, before):
    turns = formats[tokenizer, model_type]
    seconds = [Turn(index, index, index + 1, (1, 2, 2)) for index in range(3, 3 + len(lines))]
    tokens = chunk_tokens(turns, seconds, lines, turns.encode_plain(before), query=query)
    example = example_from("chunk", tokens, torch.empty(0))
    kept = example.labels[example.labels != IGNORED_LABEL]
    assert torch.equal(kept, example.input_ids[example.labels != IGNORED_LABEL])
    said = turns.tokenizer.decode(kept.tolist(), skip_special_tokens=False)
    assert said == "".join(f" {line}".rstrip() + " ...<|im_end|>" for line in lines)
    assert turns.decode(kept.tolist()) == "".join(f" {line}".rstrip() + " ..." for line in lines)


@given(lines=st.lists(lines_of(ORDINARY_WORDS), min_size=1, max_size=8))
def test_a_reply_is_cut_into_tokens_as_a_model_writes_it(formats, lines):
    """The words, their tail and the end are encoded apart: the ids must be those of the text in one piece."""
    for turns in formats.values():
        for line in lines:
            reply = turns.reply(Turn(0, 0, 1, (1, 2, 2)), line)
            text = "".join(f" {word}" for word in line.split()) + " ...<|im_end|>"
            assert turns.encode(text) == reply.ids


@given(
    lines=st.lists(lines_of(WORDS), max_size=30),
    before=lines_of(WORDS),
    sink=st.integers(0, 20),
    window=st.integers(0, 20),
    step=st.integers(1, 24),
)
def test_text_that_is_cut_every_second_is_cut_as_if_once(formats, lines, before, sink, window, step):
    """A stream cuts as it goes; a chunk is cut from all the text at once."""
    turns = formats["tiny", "qwen2_5_vl"]
    limits = {"sink_tokens": sink, "window_tokens": window, "step_tokens": step}
    kept = previous_ids(turns, before, [], **limits)
    for number in range(len(lines)):
        kept += turns.speech_ids(lines[number])
        while len(kept) > sink + window:
            kept = kept[:sink] + kept[sink + max(1, min(step, window)) :]
        assert kept == previous_ids(turns, before, lines[: number + 1], **limits)


def test_pitch_lines_come_back_from_their_own_tokenizer():
    turns = TurnFormat(build_tokenizer(), temporal_step=2.0)
    lines = ["pass by red", "", "goal for red! Rovers home 1-0"]
    tokens = chunk_tokens(turns, [Turn(i, i, i + 1, (1, 4, 4)) for i in range(3)], lines, ())
    kept = [token for token, is_asked in zip(tokens.ids, tokens.supervised(), strict=True) if is_asked]
    assert turns.decode(kept) == " pass by red ... ... goal for red! Rovers home 1-0 ..."
    assert contiguous_positions(tokens.segments).shape == (3, len(tokens))
