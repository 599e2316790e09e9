"""Clips are drawn by seed and number, and hold what the footage shows."""

import re
from itertools import pairwise

import pytest
import torch

from streamingvlm.errors import ConfigError
from streamingvlm.pitch import EventKind, parse_line, reference_line
from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.tokenizer import build_tokenizer
from streamingvlm.training.collate import Collate
from streamingvlm.training.pitch.pitch_clips import ClipDataset, ClipSettings, shuffled_goals
from streamingvlm.training.pitch.pitch_footage import mirrored, render_match
from streamingvlm.turns import TurnFormat

CLIP_TURNS = 6


@pytest.fixture(scope="module")
def turns():
    return TurnFormat(build_tokenizer(), temporal_step=2.0)


@pytest.fixture(scope="module")
def footage():
    """A minute of a match; each vision token of a second holds the number of the second."""
    match = render_match(3, 60)
    match.vision = torch.arange(60.0).view(1, 60, 1, 1).expand(1, 60, 16, 8)
    return [match]


def clips(footage, turns, seed=0, **settings):
    return ClipDataset(footage, turns, ClipSettings(CLIP_TURNS, **settings), num_examples=20, seed=seed)


def lines_of(turns, example):
    said = turns.tokenizer.decode(example.labels[example.labels >= 0]).split("<|im_end|>")[:-1]
    return [line.removesuffix(" ...").strip() for line in said]


def seconds_of(example):
    return example.vision[::16, 0].int().tolist()


def introduction_of(turns, example):
    return re.search(r"previous text\n(.*?\.)", turns.tokenizer.decode(example.input_ids))[1]


def test_a_seed_draws_the_same_clips_and_another_seed_others(footage, turns):
    def drawn(seed):
        return [example.input_ids.tolist() for example in clips(footage, turns, seed)]

    assert drawn(0) == drawn(0) != drawn(1)


def test_words_and_vision_of_a_clip_are_of_the_same_seconds(footage, turns):
    for example in clips(footage, turns, highlights_percent=50, goals_percent=30):
        calls = [parse_line(line) for line in lines_of(turns, example)]
        true = [parse_line(reference_line(footage[0].seconds[index])) for index in seconds_of(example)]
        assert [(call.kind, call.colour) for call in calls] == [(call.kind, call.colour) for call in true]
        assert example.position_ids.shape == (3, len(example.input_ids))


def test_clubs_are_those_of_the_introduction_and_not_of_the_match(footage, turns):
    introductions = set()
    for example in clips(footage, turns, goals_percent=100):
        introduction = introduction_of(turns, example)
        introductions.add(introduction)
        for call in map(parse_line, lines_of(turns, example)):
            assert call.club is None or re.search(rf"{call.club} \w+ {call.colour}", introduction)
    assert len(introductions) > 10


def test_clips_of_goals_count_every_one(footage, turns):
    for example in clips(footage, turns, goals_percent=100):
        scores = [sum(call.score) for call in map(parse_line, lines_of(turns, example)) if call.kind is EventKind.GOAL]
        assert scores and all(later in (earlier + 1, 1) for earlier, later in pairwise(scores))


def test_between_goals_lie_everyday_seconds_up_to_the_gap(footage):
    gaps = set()
    for seed in range(100):
        seconds = shuffled_goals(footage[0], Dice(seed), gap_turns=3)
        kinds = [footage[0].seconds[index].kind for index in seconds]
        shots = [n for n, kind in enumerate(kinds) if kind is EventKind.SHOT]
        assert all(kinds[n + 1] is EventKind.GOAL and kinds[n + 3] is EventKind.KICK_OFF for n in shots)
        gaps |= {shots[0], *(later - earlier - 4 for earlier, later in pairwise(shots))}
    assert gaps == {0, 1, 2, 3}


def test_a_throw_in_goes_before_as_many_goals_as_set(footage):
    num_goals = num_thrown = 0
    for seed in range(100):
        seconds = shuffled_goals(footage[0], Dice(seed), gap_turns=3, throw_ins_percent=50)
        kinds = [footage[0].seconds[index].kind for index in seconds]
        told = [kind for kind in kinds if kind in (EventKind.THROW_IN, EventKind.GOAL)]
        assert told[-1] is EventKind.GOAL and (EventKind.THROW_IN, EventKind.THROW_IN) not in pairwise(told)
        num_goals += told.count(EventKind.GOAL)
        num_thrown += told.count(EventKind.THROW_IN)
    assert 0.3 < num_thrown / num_goals < 0.7


def test_a_slip_is_an_input_and_not_supervised(footage, turns):
    num_slips = 0
    for example in clips(footage, turns, slips={"goals_percent": 100, "restated_percent": 100}, opening_percent=0):
        supervised = lines_of(turns, example)
        written = re.findall(r"assistant\n(.*?) ?\.\.\.", turns.tokenizer.decode(example.input_ids))
        true = [reference_line(footage[0].seconds[index]) for index in seconds_of(example)]
        slips = [(line, truth) for line, truth in zip(written, true, strict=True) if is_slip(line.strip(), truth)]
        num_slips += len(slips)
        assert len(supervised) + len(slips) == len(written) == CLIP_TURNS
        assert not {line.strip() for line, _ in slips} & set(supervised)
    assert num_slips > 0


def is_slip(line, truth):
    """Of lines under other clubs and scores: a goal of the other colour, or a throw-in, all of which slip here."""
    call, true = parse_line(line), parse_line(truth)
    assert call.kind == true.kind
    return call.kind is EventKind.THROW_IN or call.colour != true.colour


def test_a_goal_that_slips_shows_a_goal_of_the_other_side(footage, turns):
    told = list(goals_and_what_follows(footage, turns, {"goals_percent": 100}))
    assert told
    for written, goal, kick_off in told:
        assert written.colour == goal.colour == kick_off.colour


def test_a_miscounted_goal_shows_its_own_frames(footage, turns):
    told = list(goals_and_what_follows(footage, turns, {"miscounted_percent": 100}))
    assert told
    for written, goal, kick_off in told:
        assert written.colour == goal.colour
        assert (kick_off.kind, kick_off.side) == (EventKind.KICK_OFF, 1 - goal.side)


def goals_and_what_follows(footage, turns, slips):
    """Yield the line of each goal in some clips, the second shown, and the second shown two turns later."""
    for example in clips(footage, turns, goals_percent=100, slips=slips):
        written = re.findall(r"assistant\n(.*?) ?\.\.\.", turns.tokenizer.decode(example.input_ids))
        shown = [footage[0].seconds[index] for index in seconds_of(example)]
        for line, second, later in zip(written, shown, shown[2:], strict=False):
            if second.kind is EventKind.GOAL:
                yield parse_line(line), second, later


def test_goals_of_a_match_are_shuffled_whole(footage):
    seconds = shuffled_goals(footage[0], Dice(1))
    kinds = [footage[0].seconds[index].kind for index in seconds]
    assert kinds == [EventKind.SHOT, EventKind.GOAL, EventKind.SILENCE, EventKind.KICK_OFF] * (len(seconds) // 4)
    assert len({tuple(shuffled_goals(footage[0], Dice(seed))) for seed in range(9)}) > 1


def test_overlapped_clips_begin_where_the_chunks_of_the_paper_do(footage, turns):
    drawn = clips(footage, turns, overlap_turns=2, highlights_percent=0, opening_percent=0)
    starts = {int(example.vision[0, 0]) for example in drawn}
    assert starts <= set(range(0, 60 - CLIP_TURNS + 1, CLIP_TURNS - 2))
    assert len(starts) > 5


def test_highlights_leave_out_the_everyday_seconds(footage, turns):
    everyday = {EventKind.SILENCE, EventKind.PASS, EventKind.TACKLE}
    for example in clips(footage, turns, highlights_percent=100, opening_percent=0):
        assert not everyday & {footage[0].seconds[index].kind for index in seconds_of(example)}


def test_truncated_history_is_the_introduction_and_one_score(footage, turns):
    for example in clips(footage, turns, truncated_history_percent=100, opening_percent=0):
        text = turns.tokenizer.decode(example.input_ids)
        previous = text.partition("previous text\n")[2].partition("<|im_end|>")[0]
        lines = previous.removeprefix(introduction_of(turns, example))
        assert len(lines) <= len(" kick-off for yellow, Wanderers away 0-0")


def test_without_history_there_is_no_previous_text(footage, turns):
    for example in clips(footage, turns, no_history_percent=100, goals_percent=50):
        assert "previous text\n<|im_end|>" in turns.tokenizer.decode(example.input_ids)


def test_footage_shorter_than_a_clip_is_refused(footage, turns):
    with pytest.raises(ConfigError, match="too short"):
        ClipDataset(footage, turns, ClipSettings(60), num_examples=1, seed=0)


def test_a_batch_is_padded_on_the_right_and_pads_are_not_supervised(footage, turns):
    examples = sorted(clips(footage, turns), key=lambda example: len(example.input_ids))
    short, long = examples[0], examples[-1]
    batch = Collate(pad_token_id=0)([short, long])
    length = len(short.input_ids)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape[1:]
    assert torch.equal(batch["input_ids"][0, :length], short.input_ids)
    assert torch.equal(batch["position_ids"][:, 1], long.position_ids)
    assert (batch["labels"][0, length:] == -100).all()
    assert torch.equal(batch["vision"], torch.cat([short.vision, long.vision]))


def test_mirroring_moves_the_corners():
    picture = torch.arange(4).view(2, 2)
    assert [mirrored(picture, number).flatten().tolist() for number in range(4)] == [
        [0, 1, 2, 3],
        [1, 0, 3, 2],
        [2, 3, 0, 1],
        [3, 2, 1, 0],
    ]
