"""Clips: short stretches of footage with their commentary, as examples for the language model.

An example depends only on the seed and its index. A model prefers the previous text to vision if the text suffices, so
the previous text is sometimes reduced to what no frame shows, or replaced in lines that do not carry the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from streamingvlm.data.chunks import chunk_tokens, plan_chunks, previous_ids
from streamingvlm.errors import ConfigError
from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.script import LAST_SCORE, EventKind
from streamingvlm.pitch.styles import TELEGRAM, Style
from streamingvlm.training.examples import IGNORED_LABEL, Example, example_from
from streamingvlm.training.pitch.architecture import TURN_GRID
from streamingvlm.training.pitch.pitch_footage import Footage
from streamingvlm.training.pitch.seeded_dataset import SeededDataset
from streamingvlm.training.pitch.teams import Event, Line, Slips, Teams, draw_teams
from streamingvlm.turns import Turn, TurnFormat

_EVERYDAY = frozenset({EventKind.SILENCE, EventKind.PASS, EventKind.TACKLE})
_LONGEST_STREAM_S = 3 * 3600
_GOAL_TURNS = 4  # the shot, the goal, a silent turn, the kick-off
Clip = tuple[list[int], list[Line], tuple[int, ...]]  # seconds of the match, their lines, ids of the previous text
_ALTERED_LINES = ("", "pass by red", "pass by blue", "pass by yellow", "pass by black", "shot")


@dataclass(frozen=True)
class ClipSettings:
    """Parameters of clips; percentages are of the clips unless stated otherwise.

    clip_turns: turns per clip.
    overlap_turns: turns shared by neighbouring clips, as in the paper; None: clips start anywhere.
    opening_percent: clips that start with the match, with only the introduction before them.
    goals_percent: clips made of the goals of one match in any order, each from its shot to its kick-off, counting on
        from any score.
    goal_gap_turns: most everyday turns before such a goal, so that the score is read over a distance. With goals right
        after each other, a model learns to read it from the nearest line only.
    throw_ins_percent: of such goals, those preceded by a throw-in, which repeats the score.
    highlights_percent: of the other clips, those without everyday turns (silence, passes, tackles), so that rare events
        are frequent: shots and their outcomes, throw-ins, kick-offs, and with them the score.
    no_history_percent: clips without any previous text, not even the introduction.
    truncated_history_percent: of the others, clips whose previous text is the introduction and the last line with a
        score.
    altered_history_percent: of the rest, clips whose previous text has a third of its lines without a score replaced by
        wrong ones.
    slips: rates of wrong lines about the score; a slip is an input, never a target.
    text_sink_tokens, text_window_tokens: limits of the previous text, equal to those of the cache.
    """

    clip_turns: int = 24
    overlap_turns: int | None = None
    opening_percent: int = 4
    goals_percent: int = 0
    goal_gap_turns: int = 0
    throw_ins_percent: int = 0
    highlights_percent: int = 25
    no_history_percent: int = 0
    truncated_history_percent: int = 15
    altered_history_percent: int = 25
    slips: Slips = field(default_factory=Slips)
    text_sink_tokens: int = 32
    text_window_tokens: int = 128

    def __post_init__(self):
        if not isinstance(self.slips, Slips):
            object.__setattr__(self, "slips", Slips(**self.slips))
        if self.clip_turns < 1:
            raise ConfigError(f"clip_turns={self.clip_turns} is below 1; give 1 or more")


class ClipDataset(SeededDataset):
    """Generated clips of some footage.

    footage: all of it encoded, or none of it to train the tower as well. style: of the commentary.
    """

    def __init__(
        self,
        footage: Sequence[Footage],
        turn_format: TurnFormat,
        settings: ClipSettings,
        *,
        num_examples: int,
        seed: int,
        style: Style = TELEGRAM,
    ):
        shortest = min(len(match) for match in footage)
        if shortest <= settings.clip_turns:
            raise ConfigError(
                f"footage of {shortest} s is too short for clips of {settings.clip_turns} turns; raise duration_s"
            )
        self.footage = footage
        self.turn_format = turn_format
        self.settings = settings
        super().__init__(num_examples=num_examples, seed=seed)
        self.style = style

    def draw(self, index: int, dice: Dice) -> Example:
        """Return a clip with its vision and its commentary."""
        number = dice.below(len(self.footage))
        match = self.footage[number]
        teams, events = with_random_clubs(match, dice)
        if dice.chance(self.settings.goals_percent):
            seconds, lines, previous = self._goals(match, teams, events, dice)
        else:
            seconds, lines, previous = self._stretch(match, teams, events, dice)
        vision = match.vision_of(seconds, dice.below(match.num_mirrorings))
        offset_s = dice.below(_LONGEST_STREAM_S) if seconds[0] else 0
        turns = [Turn(offset_s + n, offset_s + n, offset_s + n + 1, TURN_GRID) for n in range(len(seconds))]
        tokens = chunk_tokens(self.turn_format, turns, [line for line, _ in lines], previous)
        example = example_from(f"match {number}, second {seconds[0]}", tokens, vision)
        slips = {turn.index for turn, (_, is_slip) in zip(turns, lines, strict=True) if is_slip}
        is_slip = torch.tensor([s.turn in slips for s in tokens.segments for _ in range(s.num_tokens)])
        return replace(example, labels=example.labels.masked_fill(is_slip, IGNORED_LABEL))

    def _stretch(self, match: Footage, teams: Teams, events: list[Event], dice: Dice) -> Clip:
        """Draw consecutive seconds (or highlights), with the commentary of all seconds before them."""
        seconds = self._seconds(match, dice)
        first = (0, 0) if seconds[0] == 0 else _any_score(dice)
        lines = teams.lines_with_slips(events, first, self.settings.slips, dice, self.style)
        return seconds, [lines[index] for index in seconds], self._previous_ids(teams, lines[: seconds[0]], dice)

    def _goals(self, match: Footage, teams: Teams, events: list[Event], dice: Dice) -> Clip:
        """Draw goals in any order, after a line that gives the score and the lines of other goals.

        A goal given to the other side also shows the frames of a goal of that side; only the kick-off reveals the slip.
        """
        gap_turns, throw_ins_percent = self.settings.goal_gap_turns, self.settings.throw_ins_percent
        seconds = shuffled_goals(match, dice, gap_turns=gap_turns, throw_ins_percent=throw_ins_percent)
        shown_events = [(EventKind.THROW_IN, dice.below(2)), *(events[index] for index in seconds)]
        score_line, *lines = teams.lines_with_slips(
            shown_events, _any_score(dice), self.settings.slips, dice, self.style
        )
        first = dice.below(max(1, len(seconds) - self.settings.clip_turns + 1))
        clip = slice(first, first + self.settings.clip_turns)
        is_other_side = [
            is_slip and self.style.parse_line(line).colour != teams.colours[events[index][1]]
            for index, (line, is_slip) in zip(seconds, lines, strict=True)
        ]
        shown = _seconds_shown(seconds, is_other_side, events, dice)
        return shown[clip], lines[clip], self._previous_ids(teams, [score_line, *lines[:first]], dice)

    def _seconds(self, match: Footage, dice: Dice) -> list[int]:
        """Draw the seconds of a stretch."""
        num_turns = self.settings.clip_turns
        if dice.chance(self.settings.opening_percent):
            return list(range(num_turns))
        seconds = list(range(len(match)))
        if dice.chance(self.settings.highlights_percent):
            rare = [index for index in seconds if match.seconds[index].kind not in _EVERYDAY]
            seconds = rare if len(rare) > num_turns else seconds
        start = self._start(len(seconds), dice)
        return seconds[start : start + num_turns]

    def _start(self, num_seconds: int, dice: Dice) -> int:
        num_turns, overlap_turns = self.settings.clip_turns, self.settings.overlap_turns
        if overlap_turns is None:
            return dice.below(num_seconds - num_turns)
        chunks = plan_chunks(num_seconds, chunk_turns=num_turns, overlap_turns=overlap_turns)
        starts = [chunk.start for chunk in chunks if len(chunk) == num_turns]
        return starts[dice.below(len(starts))]

    def _previous_ids(self, teams: Teams, history: list[Line], dice: Dice) -> tuple[int, ...]:
        if dice.chance(self.settings.no_history_percent):
            return ()
        lines = [line for line, _ in history]
        has_score = [self.style.parse_line(line).score is not None for line in lines]
        if dice.chance(self.settings.truncated_history_percent):
            is_true = [not is_slip for _, is_slip in history]
            lines = [line for line, *known in zip(lines, has_score, is_true, strict=True) if all(known)][-1:]
        elif dice.chance(self.settings.altered_history_percent):
            lines = [
                _ALTERED_LINES[dice.below(len(_ALTERED_LINES))] if dice.below(3) == 0 and not scored else line
                for line, scored in zip(lines, has_score, strict=True)
            ]
        return previous_ids(
            self.turn_format,
            teams.introduction,
            lines,
            sink_tokens=self.settings.text_sink_tokens,
            window_tokens=self.settings.text_window_tokens,
        )


def with_random_clubs(match: Footage, dice: Dice) -> tuple[Teams, list[Event]]:
    """Return the events of a match with random clubs, either side named first."""
    flip, clubs = dice.below(2), draw_teams(dice).clubs
    colours = match.seconds[0].colours
    teams = Teams((colours[flip], colours[1 - flip]), clubs)
    return teams, [(s.kind, None if s.side is None else s.side ^ flip) for s in match.seconds]


def shuffled_goals(match: Footage, dice: Dice, *, gap_turns: int = 0, throw_ins_percent: int = 0) -> list[int]:
    """Return the seconds of all goals of a match in random order, each from the shot to the kick-off after it.

    Up to ``gap_turns`` everyday seconds precede each goal, and each throw-in put before a goal. Short gaps are more
    likely than long ones, as in a match.
    """
    goals = [index for index, second in enumerate(match.seconds[:-2]) if second.kind is EventKind.GOAL]
    everyday = [index for index, second in enumerate(match.seconds) if second.kind in _EVERYDAY]
    throw_ins = [index for index, second in enumerate(match.seconds) if second.kind is EventKind.THROW_IN]
    seconds: list[int] = []
    while goals:
        goal = goals.pop(dice.below(len(goals)))
        if throw_ins and dice.chance(throw_ins_percent):
            seconds += [*_gap(everyday, gap_turns, dice), throw_ins[dice.below(len(throw_ins))]]
        seconds += [*_gap(everyday, gap_turns, dice), *range(goal - 1, goal - 1 + _GOAL_TURNS)]
    return seconds


def _gap(everyday: list[int], most_turns: int, dice: Dice) -> list[int]:
    num_turns = dice.below(dice.below(most_turns + 1) + 1)
    start = dice.below(max(1, len(everyday) - num_turns))
    return everyday[start : start + num_turns]


def _seconds_shown(seconds: list[int], is_other_side: list[bool], events: list[Event], dice: Dice) -> list[int]:
    """Replace the seconds of a goal given to the other side by those of a goal of that side, if there is one."""
    shown = list(seconds)
    for number, (index, is_other) in enumerate(zip(seconds, is_other_side, strict=True)):
        if not (is_other and events[index][0] is EventKind.GOAL):
            continue
        others = [n for n in seconds if events[n] == (EventKind.GOAL, 1 - events[index][1])]
        if others:
            other = others[dice.below(len(others))]
            shown[number - 1 : number + 2] = range(other - 1, other + 2)  # from the shot to the silence
    return shown


def _any_score(dice: Dice) -> tuple[int, int]:
    """Draw a score below LAST_SCORE; a third of the time, one side is one goal short of it."""
    score = [dice.below(LAST_SCORE), dice.below(LAST_SCORE)]
    if dice.below(3) == 0:
        score[dice.below(2)] = LAST_SCORE - 1
    return score[0], score[1]
