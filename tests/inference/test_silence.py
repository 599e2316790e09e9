"""To speak or not: the probability that is told, and the threshold on it."""

import pytest
import torch
from steering import record_logits
from tiny_streams import SMALL, VIDEO, small

from streamingvlm.config import SamplingConfig
from streamingvlm.errors import ConfigError
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession


def open_session(model, threshold, temperature=1.0) -> StreamingSession:
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=8, seed=2, silence_threshold=threshold)
    return StreamingSession(model, cache=SMALL, video=VIDEO, sampling=sampling)


def replies(session: StreamingSession, num_turns: int) -> list[tuple[float, bool]]:
    """Of each turn the probability of silence, and whether it was the silent reply."""
    told = []
    for turn in range(num_turns):
        line = session.step(small(turn))
        silent_reply = [*session.format.ellipsis_ids, session.format.end_of_turn_id]
        ids = session.inspect().ids[-len(silent_reply) :]
        told.append((line.silence, line.is_silent and ids == silent_reply))
    return told


def test_the_probability_is_that_of_the_models_own_first_token(model):
    session = open_session(model, None)
    first = record_logits(session)
    silence = session.step(small(0)).silence
    silent = [session.format.encode(text)[0] for text in (" ...", "<|im_end|>", "<|endoftext|>")]
    assert silence == pytest.approx(float(first[0].softmax(-1)[silent].sum()), rel=1e-5)


def test_a_threshold_decides_turn_by_turn(model):
    num_mixed = 0
    for threshold, _ in replies(open_session(model, None), 5):
        told = replies(open_session(model, threshold), 5)
        assert [is_silent for _, is_silent in told] == [silence >= threshold for silence, _ in told]
        num_mixed += len({is_silent for _, is_silent in told}) == 2
    assert num_mixed


@pytest.mark.parametrize(("threshold", "is_silent"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_scale(model, threshold, is_silent):
    session = open_session(model, threshold)
    assert [silent for _, silent in replies(session, 5)] == [is_silent] * 5


def test_a_forced_silence_shares_a_round_with_a_turn_that_is_scored(model):
    """The silent reply is prefilled in the round in which the other stream's turn gets its probability."""
    engine = Engine(model, num_slots=2)
    sampling = SamplingConfig(temperature=0, max_new_tokens=8, silence_threshold=0.0)
    sessions = [StreamingSession(model, engine=engine, cache=SMALL, video=VIDEO, sampling=sampling) for _ in range(2)]
    futures = []
    for session in sessions:
        futures.append(session.submit(small(0)))
        engine.step()
    engine.run_until_idle()
    alone = open_session(model, 0.0, temperature=0.0).step(small(0))
    assert [future.result(timeout=0).silence for future in futures] == pytest.approx([alone.silence] * 2)
    assert all(future.result(timeout=0).is_silent for future in futures)


def test_a_silence_by_threshold_is_kept_as_one_that_was_heard_and_draws_no_random_number(model):
    session, heard = open_session(model, 0.0), open_session(model, None)
    for turn in range(6):
        session.step(small(turn))
        heard.step(small(turn), reply="")
        assert session.inspect().ids == heard.inspect().ids
        assert session.layout == heard.layout
        assert session.inspect().num_cached == heard.inspect().num_cached
    assert torch.equal(session.inspect().random_state, heard.inspect().random_state)


def test_a_reply_that_is_to_speak_never_begins_with_silence(model):
    session = open_session(model, 1.0, temperature=0.0)
    silent = list(session.format.silent_ids)
    head = session.model.lm_head
    with torch.inference_mode():
        bias = torch.zeros(head.out_features)
        bias[silent] = 5.0  # silence would be the likeliest by far, and yet is not certain
        logits = type(model).logits
        try:
            type(model).logits = lambda self, hidden: logits(self, hidden) + bias
            line = session.step(small(0))
        finally:
            type(model).logits = logits
    assert line.silence > 0.5
    assert not set(session.inspect().ids[-line.num_tokens - 1 :][:1]) & set(silent)


def test_a_question_in_a_turn_is_answered_whatever_the_threshold(model):
    session, free = open_session(model, 0.0), open_session(model, None)
    asked, expected = (s.step(small(0), question="Who has the ball?") for s in (session, free))
    assert (asked.text, asked.num_tokens) == (expected.text, expected.num_tokens)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "often"])
def test_a_threshold_that_is_no_probability_is_refused(wrong):
    with pytest.raises(ConfigError, match="silence_threshold"):
        SamplingConfig(silence_threshold=wrong)
