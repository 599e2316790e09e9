"""Questions from a fork: the answer is that of a full copy, and the stream is as if nobody had asked."""

import random
import threading
from itertools import islice

import pytest
import torch
from naive_stream import NaiveStream
from tiny_streams import CACHES, GREEDY, SAMPLED, SMALL, TEXTS, VIDEO, second, small

from streamingvlm.cache.kv_cache import bytes_per_token
from streamingvlm.cache.layout import SegmentKind
from streamingvlm.config import CacheConfig
from streamingvlm.errors import ConfigError, EngineFull, StreamingVLMError
from streamingvlm.inference import model_runner
from streamingvlm.inference.batch import PrefillSlice
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.sampling import sample_tokens
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, render
from streamingvlm.turns import Turn
from streamingvlm.video.video_turn import VideoTurn

QUESTION = "How many goals were there?"
TOLERANCE = 1e-4


def open_session(model, cache=SMALL, sampling=SAMPLED, **settings) -> StreamingSession:
    return StreamingSession(model, cache=cache, video=VIDEO, sampling=sampling, **{**TEXTS, **settings})


def open_in(engine: Engine, **settings) -> StreamingSession:
    return StreamingSession(engine.model, engine=engine, **settings)


@pytest.fixture
def chosen_from(monkeypatch) -> list[torch.Tensor]:
    """The logits before every token that any session chooses."""
    seen = []

    def sample_and_keep(logits, *args, **rows):
        seen.append(logits[0].clone())
        return sample_tokens(logits, *args, **rows)

    monkeypatch.setattr(model_runner, "sample_tokens", sample_and_keep)
    return seen


def state_of(session: StreamingSession) -> list:
    """All that decides what a stream says from now on."""
    view = session.inspect()
    tensors = (view.keys, view.values, view.positions, view.random_state)
    host = (tuple(view.ids), view.layout, view.next_position, view.stale_range, view.vision_turns)
    return [*(tensor.clone() for tensor in tensors), host]


def is_equal(one: list, other: list) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True)) and one[-1] == other[-1]


def copy_of(session: StreamingSession) -> StreamingSession:
    """A full copy, tensors and all."""
    copy = open_session(session.model, session.cache_config, session.sampling_config)
    view, sequence = session.inspect(), copy._stream.sequence
    sequence.kv.reserve_(view.num_cached)
    for kind in ("keys", "values"):
        getattr(sequence.kv, kind)[:, :, : view.num_cached] = getattr(view, kind)
    copy._stream.state = session._stream.state
    return copy


@torch.inference_mode()
def answer_of_a_copy(session: StreamingSession, question: str) -> str:
    """Append the question to a full copy, for good, as its turns are appended, and generate the answer."""
    copy = copy_of(session)
    stream, runner, turn_format = copy._stream, copy.engine.runner, copy.format
    sequence = stream.sequence
    if copy.num_turns:
        last = copy.layout.segments[-1]
        sequence.append(turn_format.line_feed(Turn(last.turn, last.start_s, last.end_s, (0, 0, 0))))
    else:
        sequence.append(turn_format.prologue(copy.previous_text))
    sequence.append(turn_format.message(Turn(copy.num_turns, copy.end_s, copy.end_s, (0, 0, 0)), question))
    stream.sampler.reset_penalty(sequence.ids)
    sequence.prepare_positions(copy.sampling_config.max_new_tokens)
    logits = runner.prefill([PrefillSlice(sequence, sequence.pending())])
    reply = runner.sample_next([stream.sampler], logits)
    while reply[-1] not in turn_format.stop_ids and len(reply) < copy.sampling_config.max_new_tokens:
        sequence.append_token(reply[-1])
        reply += runner.decode([stream])
        sequence.commit_token()
    return turn_format.spoken_text(reply)


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_an_answer_is_that_of_a_full_copy_and_leaves_no_trace(model, cache, chosen_from):
    session = open_session(model, cache)
    for turn in range(6):
        if turn in (0, 1, 4, 5):
            chosen_from.clear()
            expected = answer_of_a_copy(session, QUESTION)
            logits = [torch.stack(chosen_from)]
            chosen_from.clear()
            before = state_of(session)
            assert session.ask(QUESTION) == expected
            assert is_equal(state_of(session), before)
            logits.append(torch.stack(chosen_from))
            assert torch.equal(*logits)
        session.step(small(turn))


@pytest.mark.parametrize(("model_type", "name"), [("qwen2_5_vl", "native reread"), ("qwen3_vl", "streaming")])
def test_an_answer_is_that_of_the_naive_stream(models, model_type, name, chosen_from):
    model, cache = models[model_type], CacheConfig(**CACHES[name])
    session = open_session(model, cache, GREEDY)
    naive = NaiveStream(model, cache, VIDEO, max_new_tokens=GREEDY.max_new_tokens, **TEXTS)
    for turn in range(4):
        session.step(small(turn))
        with torch.inference_mode():
            naive.step(small(turn))
    chosen_from.clear()
    session.ask(QUESTION)
    with torch.inference_mode():
        expected = naive.ask(QUESTION)
    assert len(chosen_from) == len(expected)
    assert (torch.stack(chosen_from) - torch.stack(expected)).abs().max() < TOLERANCE


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_a_stream_that_is_asked_goes_on_bit_for_bit(model, cache):
    asked, other = (open_session(model, cache) for _ in range(2))
    for turn in range(6):
        said, expected = asked.step(small(turn)), other.step(small(turn))
        assert (said.text, said.num_tokens, said.silence) == (expected.text, expected.num_tokens, expected.silence)
        assert is_equal(state_of(asked), state_of(other))
        asked.ask(QUESTION, max_new_tokens=9)
        asked.score_choices(QUESTION)
        if turn == 3:
            asked.ask(QUESTION * 40)
    assert len(asked.stats.stages) == len(other.stats.stages) + 1


def test_an_answer_costs_no_copy_of_the_cache(model):
    session = open_session(model)
    memory, capacity = session.engine.runner.pool.keys.data_ptr(), session.inspect().allocated_tokens
    for turn in range(8):
        session.step(small(turn))
        session.ask(QUESTION, max_new_tokens=20)
    assert (session.engine.runner.pool.keys.data_ptr(), session.inspect().allocated_tokens) == (memory, capacity)


def test_the_same_question_at_the_same_moment_has_the_same_answer(model):
    session = open_session(model)
    session.step(small(0))
    first = session.ask(QUESTION, max_new_tokens=12)
    assert session.ask(QUESTION, max_new_tokens=12) == first
    session.step(small(1))
    assert session.ask(QUESTION, max_new_tokens=12) != first


def test_after_an_interruption_a_question_leaves_no_trace(model, monkeypatch):
    """A turn whose prefill was broken off has tokens, and vision, that have yet to be fed."""
    asked, other = (open_session(model, {**SMALL, "recompute_text": True}) for _ in range(2))
    for session in (asked, other):
        for turn in range(4):
            session.step(small(turn))
        with monkeypatch.context() as patch:
            patch.setattr(model.text_model.layers[-1].mlp, "forward", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.step(small(4))
    asked.ask(QUESTION)
    for turn in range(5, 9):
        assert asked.step(small(turn)).text == other.step(small(turn)).text
        assert is_equal(state_of(asked), state_of(other))


def interrupt(_states):
    raise KeyboardInterrupt


def commentary_while_asked(
    session, shown: list[VideoTurn], num_questions: int, seed: int
) -> tuple[list[str], list[str]]:
    """The lines of a stream, and the answers to questions that another thread asks of it at random moments."""
    dice, answers, errors = random.Random(seed), [], []
    moments = [threading.Event() for _ in range(num_questions)]
    when = sorted(dice.randrange(len(shown)) for _ in moments)

    def ask():
        try:
            for moment in moments:
                moment.wait()
                threading.Event().wait(dice.random() * 0.05)  # anywhere in a turn
                answers.append(session.ask(QUESTION, max_new_tokens=dice.randrange(1, 9)))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            errors.append(error)

    def seconds():
        for turn, seen in enumerate(shown):
            for moment, at in zip(moments, when, strict=True):
                if at == turn:
                    moment.set()
            yield seen

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    lines = [line.text for line in session.stream(seconds())]
    asking.join(120)
    assert not errors
    return lines, answers


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_questions_from_another_thread_leave_the_commentary_as_it_is(model, sampling):
    quiet = [line.text for line in open_session(model, SMALL, sampling).stream(turns(12))]
    lines, answers = commentary_while_asked(open_session(model, SMALL, sampling), turns(12), 10, seed=1)
    assert lines == quiet
    assert len(answers) == 10


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_fifty_questions_at_random_times_leave_the_commentary_as_it_is(model, cache, sampling):
    quiet = [line.text for line in open_session(model, cache, sampling).stream(turns(100))]
    lines, answers = commentary_while_asked(open_session(model, cache, sampling), turns(100), 50, seed=2)
    assert lines == quiet
    assert len(answers) == 50


def turns(number: int) -> list[VideoTurn]:
    return [second(turn) for turn in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 5}], ids=["greedy", "sampled"])
def test_fifty_questions_leave_the_commentary_of_a_match_as_it_is(sampling):
    """The embedded model at work, asked in an engine that another stream shares."""
    match, pitch = Match(seed=5), load_model("pitch", device="cpu")
    seconds = islice(match.seconds(), 240)
    shown = [VideoTurn(turn, turn, turn + 1.0, render(seen)) for turn, seen in enumerate(seconds)]
    settings = {"sampling": sampling, "previous_text": match.intro}
    quiet = [line.text for line in StreamingSession(pitch, **settings).stream(shown)]
    with Engine(pitch, num_slots=2) as engine:
        other = open_in(engine, **settings)
        told = [other.submit(seen) for seen in shown]
        lines, answers = commentary_while_asked(open_in(engine, **settings), shown, 50, seed=3)
        assert [future.result(300).text for future in told] == quiet
    print(f"{len(lines)} lines, of which {len(list(filter(None, lines)))} spoken, and {len(answers)} answers")
    assert lines == quiet
    assert len(answers) == 50


def test_a_stream_without_end_answers_all_the_same(model):
    session, is_answered = open_session(model), threading.Event()

    def endless():
        turn = 0
        while not is_answered.is_set():
            yield VideoTurn(turn, turn, turn + 1.0, small(turn % 5))
            turn += 1

    def ask():
        session.ask(QUESTION)
        is_answered.set()

    threading.Thread(target=ask, daemon=True).start()
    assert list(session.stream(endless()))


def test_a_question_inside_a_turn_is_refused_in_words_and_the_turn_goes_on(model):
    told = []

    def ask_back(piece):
        with pytest.raises(StreamingVLMError, match="another thread"):
            session.ask(QUESTION)
        told.append(piece)
        assert not session.engine.num_waiting, "nor is it asked later"

    session = open_session(model, on_token=ask_back)
    while not told:
        session.step(small(session.num_turns))
    assert session.ask(QUESTION, max_new_tokens=1) == session.ask(QUESTION, max_new_tokens=1)


def test_a_question_for_which_an_engine_has_no_room_is_refused_and_the_stream_goes_on(model):
    quiet = open_session(model)
    size = bytes_per_token(model.text_model.config, model.dtype) * (quiet.inspect().allocated_tokens + 1)
    with Engine(model, memory_bytes=size) as engine:
        session = open_in(engine, cache=SMALL, video=VIDEO, sampling=SAMPLED, **TEXTS)
        for turn in range(5):
            assert session.step(small(turn)).text == quiet.step(small(turn)).text
            with pytest.raises(EngineFull, match="room"):
                session.ask(QUESTION * 40)
            session.ask(QUESTION)
            assert is_equal(state_of(session), state_of(quiet))


@pytest.mark.parametrize("wrong", [0, -3, "ten"])
def test_a_wrong_length_of_answer_is_refused(model, wrong):
    with pytest.raises(ConfigError, match="max_new_tokens"):
        open_session(model).ask(QUESTION, max_new_tokens=wrong)


def test_choices_are_weighed_by_the_first_token_of_the_answer(model, chosen_from):
    session = open_session(model)
    session.step(small(0))
    chosen_from.clear()
    session.ask(QUESTION)
    probabilities = chosen_from[0].softmax(-1)
    ids = session.format.encode
    spellings = [[ids(word)[0] for word in words] for words in (("yes", "Yes"), ("no", "No"))]
    weights = session.score_choices(QUESTION, ("yes", "no"))
    assert weights == pytest.approx([float(probabilities[own].sum()) for own in spellings], rel=1e-4)
    assert 0 < sum(weights) < 1


def test_choices_that_begin_alike_are_refused(model):
    with pytest.raises(ConfigError, match="'no'"):
        open_session(model).score_choices(QUESTION, ("no", "NO"))


def text_of(session: StreamingSession) -> str:
    return session.model.tokenizer.decode(session.inspect().ids)


def test_a_new_standing_query_takes_the_place_of_the_old_one_as_in_the_naive_stream(model):
    cache = CacheConfig(**CACHES["reread"])
    session = open_session(model, cache, GREEDY)
    naive = NaiveStream(model, cache, VIDEO, max_new_tokens=GREEDY.max_new_tokens, **TEXTS)
    changes = {1: "Speak of the goalkeeper.", 4: "", 6: "Rhyme."}
    for turn in range(10):
        if turn in changes:
            session.query = changes[turn]
            naive.instruct(changes[turn])
        session.step(small(turn))
        with torch.inference_mode():
            naive.step(small(turn))
        assert session.inspect().ids == [token.id for token in naive.tokens], turn
        assert [text_of(session).count(words) for words in (TEXTS["query"], *changes.values()) if words] == [
            turn < 1,
            1 <= turn < 4,
            turn >= 6,
        ]
    standing = [s.kind for s in session.layout.segments if s.turn == 6 and s.kind is not SegmentKind.PREVIOUS]
    assert standing == [SegmentKind.USER_OPEN, SegmentKind.QUERY, SegmentKind.USER_CLOSE]


@pytest.mark.parametrize("name", ["full", "window", "recompute", "reference"])
def test_a_new_standing_query_is_told_with_the_next_turn_under_every_policy(model, name):
    session = open_session(model, CACHES[name])
    for turn in range(4):
        session.step(small(turn))
    session.query = "Speak of the goalkeeper."
    assert session.ask(QUESTION) == session.ask(QUESTION)
    session.step(small(4))
    assert TEXTS["query"] not in text_of(session)
    assert text_of(session).count("Speak of the goalkeeper.") == 1
    for turn in range(5, 12):
        session.step(small(turn))
    assert text_of(session).count("Speak of the goalkeeper.") == (name != "reference"), "the reference forgets it"


def test_a_longer_standing_query_raises_the_bound_and_stays_within_it(model):
    session = open_session(model)
    bound = session.stats.capacity_tokens
    session.query = "Speak of the goalkeeper. " * 30
    for turn in range(10):
        session.step(small(turn))
        assert session.stats.cache_tokens <= session.stats.capacity_tokens
    assert session.stats.capacity_tokens > bound
