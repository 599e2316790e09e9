"""A drill supervises what follows from its own text, and nothing that needs vision."""

import re

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.pitch.world import CLUBS, COLOURS
from streamingvlm.training.pitch.drills import DrillDataset, DrillSettings, MixedDataset
from streamingvlm.turns import TurnFormat

LINE = re.compile(r"(goal for|throw-in to|kick-off for) (\w+)(?:[!,] (\w+) \w+|, still) (\d)-(\d)")


@pytest.fixture(scope="module")
def turns():
    return TurnFormat(build_tokenizer(), temporal_step=2.0)


def texts(turns, **settings):
    drills = DrillDataset(turns, DrillSettings(**settings), num_examples=60, seed=3)
    for number in range(len(drills)):
        example = drills[number]
        yield turns.tokenizer.decode(example.input_ids), turns.tokenizer.decode(example.labels[example.labels >= 0])


def test_each_line_follows_from_the_introduction_and_the_score_before(turns):
    for text, _ in texts(turns):
        first, second = re.findall(r"(\w+) (?:home|away) (\w+)[,.]", text)
        score = None
        for event, colour, club, *goals in LINE.findall(text):
            side = (first[1], second[1]).index(colour)
            score_now = tuple(map(int, goals))
            assert club in ("", (first, second)[side][0])
            if event == "goal for":
                assert club
                assert score_now == (score[0] + (side == 0), score[1] + (side == 1))
            elif score and max(score) < 9:
                assert score_now == score
            score = score_now


def test_neither_events_nor_colours_are_supervised(turns):
    for _, supervised in texts(turns):
        words = set(re.findall(r"[\w-]+", supervised))
        assert not words & set(COLOURS)
        assert not words & {"goal", "pass", "tackle", "throw-in", "kick-off", "shot"}
        assert words & set(CLUBS)


def test_a_seed_draws_the_same_drills(turns):
    assert list(texts(turns)) == list(texts(turns))


def test_mixing_gives_the_share_that_is_set():
    mixed = MixedDataset(["clip"] * 2000, ["drill"] * 2000, drills_percent=30, seed=1)
    assert 500 < [mixed[number] for number in range(len(mixed))].count("drill") < 700


def test_a_drill_of_one_line_is_refused():
    with pytest.raises(ConfigError, match="num_lines=1"):
        DrillSettings(num_lines=1)
