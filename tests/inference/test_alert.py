"""An alert is silent until its condition comes true, says so once, and admits what the model does not know."""

import pytest
import torch
from tiny_streams import SMALL, VIDEO, second

from streamingvlm.config import SamplingConfig
from streamingvlm.errors import ConfigError
from streamingvlm.inference.alert import QUESTION, Alert, AlertLine
from streamingvlm.inference.session import StreamingSession

CONDITION = "a goal is scored"


def open_session(model) -> StreamingSession:
    return StreamingSession(model, cache=SMALL, video=VIDEO, sampling=SamplingConfig(max_new_tokens=4, seed=1))


def seconds(number: int):
    return map(second, range(number))


def watch(session, verdicts, monkeypatch, **settings) -> tuple[Alert, list[AlertLine]]:
    """The lines of an alert whose model answers with these probabilities of yes and no, turn by turn."""
    asked, answers = [], iter(verdicts)
    monkeypatch.setattr(session, "score_choices", lambda question: asked.append(question) or next(answers))
    monkeypatch.setattr(session, "ask", lambda question: "A ball in the net.")
    alert = Alert(session, CONDITION, **settings)
    lines = list(alert.stream(seconds(len(verdicts))))
    assert asked == [QUESTION.format(condition=CONDITION)] * len(verdicts)
    return alert, lines


YES, NO, NEITHER = (0.9, 0.05), (0.1, 0.8), (0.01, 0.02)


def test_it_speaks_when_the_condition_comes_true_and_once_each_time(model, monkeypatch):
    alert, lines = watch(open_session(model), [NO, YES, YES, NO, NO, YES], monkeypatch)
    assert [bool(line.text) for line in lines] == [False, True, False, False, False, True]
    assert lines[1].text == "a goal is scored: A ball in the net."
    assert (lines[1].start_s, lines[1].end_s) == (1.0, 2.0)
    assert "all 6 turns" in alert.summary()


def test_a_model_that_answers_neither_raises_no_alarm_and_is_told(model, monkeypatch):
    alert, lines = watch(open_session(model), [NEITHER, YES, NEITHER, YES, NO], monkeypatch)
    assert [bool(line.text) for line in lines] == [False, True, False, False, False], "not knowing is not a no"
    assert [line.is_decided for line in lines] == [False, True, False, True, True]
    assert lines[0].probability == 0.0
    assert "2 of 5" in alert.summary()


def test_the_threshold_is_on_yes_against_no(model, monkeypatch):
    verdicts = [(0.3, 0.3), (0.59, 0.41), (0.61, 0.39)]
    _, lines = watch(open_session(model), verdicts, monkeypatch, threshold=0.6)
    assert [bool(line.text) for line in lines] == [False, False, True]


def test_any_model_can_be_asked_and_the_stream_stays_as_it_would(model):
    watched, quiet = open_session(model), open_session(model)
    lines = list(Alert(watched, CONDITION, threshold=0.0).stream(seconds(5)))
    for shown in seconds(5):
        quiet.step(shown, reply="")
    assert watched.inspect().ids == quiet.inspect().ids
    assert torch.equal(watched.inspect().keys, quiet.inspect().keys)
    assert torch.equal(watched.inspect().random_state, quiet.inspect().random_state)
    assert all(0 < line.yes < 1 and 0 < line.no < 1 and line.yes + line.no < 1 for line in lines)


def test_the_words_come_from_the_stream_that_saw_it(model, monkeypatch):
    session = open_session(model)
    monkeypatch.setattr(session, "score_choices", lambda question: YES)
    line = next(Alert(session, CONDITION).stream(seconds(1)))
    assert line.text.startswith(CONDITION)
    assert line.latency_s > 0


@pytest.mark.parametrize(
    ("condition", "threshold", "word"), [(" ", 0.5, "empty"), ("goal", 1.5, "threshold"), ("goal", -1, "threshold")]
)
def test_wrong_settings_are_named(model, condition, threshold, word):
    with pytest.raises(ConfigError, match=word):
        Alert(open_session(model), condition, threshold=threshold)
