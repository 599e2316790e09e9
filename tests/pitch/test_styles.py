"""Each style has its own line for every second and parses only its own lines."""

from itertools import islice

import pytest

from streamingvlm.pitch import EventKind, Match, score
from streamingvlm.pitch.commentary_lines import OTHER
from streamingvlm.pitch.styles import RADIO, STYLES, TELEGRAM
from streamingvlm.pitch.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def seconds():
    return list(islice(Match(5).seconds(), 900))


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_a_line_means_its_second(style, seconds):
    assert {second.kind for second in seconds} == set(EventKind)
    for second in seconds:
        call = style.parse_line(style.reference_line(second))
        assert call.kind == second.kind
        assert call.colour in (None, second.colour)
        assert call.club in (None, second.club)
        assert call.score in (None, second.score)


def test_the_second_style_begins_with_the_colour_of_every_event(seconds):
    for second in seconds:
        if second.kind is not EventKind.SILENCE:
            assert (
                RADIO.reference_line(second).split()[0]
                == second.colour
                == RADIO.parse_line(RADIO.reference_line(second)).colour
            )


def test_a_goal_names_club_and_score(seconds):
    goal = next(second for second in seconds if second.kind is EventKind.GOAL)
    call = RADIO.parse_line(RADIO.reference_line(goal))
    assert (call.club, call.score) == (goal.club, goal.score)


def test_lines_of_the_first_style_do_not_parse_in_the_second(seconds):
    for second in seconds:
        if second.kind is not EventKind.SILENCE:
            assert RADIO.parse_line(TELEGRAM.reference_line(second)).kind == OTHER


@pytest.mark.parametrize("line", ["red", "red pass by", "pass", "red goal!", "green pass", "red throw-in, 2 - 1"])
def test_an_incomplete_line_does_not_parse(line):
    assert RADIO.parse_line(line).kind == OTHER


def test_commentary_in_a_style_is_scored_in_that_style(seconds):
    lines = [RADIO.reference_line(second) for second in seconds]
    assert score(seconds, lines, RADIO).macro_f1 == 1.0
    assert score(seconds, lines, RADIO).side_accuracy == 1.0
    assert score(seconds, lines).accuracy < 0.6


def test_the_second_style_needs_no_token_that_the_first_does_not(seconds):
    """LoRA does not train the embeddings, so a token that was never generated before could hardly be learnt."""
    tokenizer = build_tokenizer()

    def tokens(style):
        return {token for second in seconds for token in tokenizer.encode(" " + style.reference_line(second))}

    assert tokens(RADIO) <= tokens(TELEGRAM)
