"""Drills: text-only matches that supervise what follows from earlier text: clubs and scores.

The club of a colour is given once, in the introduction, and a score is the last one plus a goal. A clip of 24 turns
supervises these once or twice in a thousand tokens; a drill of the same length does so a hundred times.
"""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from streamingvlm.cache.positions import contiguous_positions
from streamingvlm.errors import ConfigError
from streamingvlm.pitch.commentary_lines import parse_line
from streamingvlm.pitch.dice import Dice, hashed
from streamingvlm.pitch.script import LAST_SCORE, EventKind
from streamingvlm.training.examples import IGNORED_LABEL, Example
from streamingvlm.training.pitch.seeded_dataset import SeededDataset
from streamingvlm.training.pitch.teams import Event, Slips, draw_teams, next_score
from streamingvlm.turns import TurnFormat

_EVERYDAY = (EventKind.PASS, EventKind.TACKLE, EventKind.SHOT, EventKind.SAVE, EventKind.WIDE)
_KICK_OFF_PERCENT = 85  # after a goal; the lines between may have left the previous text


@dataclass(frozen=True)
class DrillSettings:
    """Parameters of drills; percentages are of the lines.

    num_lines: lines per drill.
    everyday_percent: lines with neither club nor score.
    goal_percent: goals among the others, until one side has LAST_SCORE.
    slips: rates of wrong lines.
    """

    num_lines: int = 22
    everyday_percent: int = 25
    goal_percent: int = 65
    slips: Slips = field(default_factory=Slips)

    def __post_init__(self):
        if not isinstance(self.slips, Slips):
            object.__setattr__(self, "slips", Slips(**self.slips))
        if self.num_lines < 2:
            raise ConfigError(f"num_lines={self.num_lines} leaves no line to predict; give 2 or more")


class DrillDataset(SeededDataset):
    """Generated drills, in the place of a stream's previous text."""

    def __init__(self, turn_format: TurnFormat, settings: DrillSettings, *, num_examples: int, seed: int):
        self.turn_format = turn_format
        self.settings = settings
        super().__init__(num_examples=num_examples, seed=seed)

    def draw(self, index: int, dice: Dice) -> Example:
        """Return a drill without vision; only what follows from earlier text is supervised, no colour and no event."""
        teams, first = draw_teams(dice), (dice.below(LAST_SCORE + 1), dice.below(LAST_SCORE + 1))
        lines = teams.lines_with_slips(self._events(first, dice), first, self.settings.slips, dice)
        ids = list(self.turn_format.encode_plain(teams.introduction))
        is_supervised = [False] * len(ids)
        for number, (line, is_slip) in enumerate(lines):
            line_ids = self.turn_format.speech_ids(line)
            ids += line_ids
            is_supervised += self._is_supervised(line, len(line_ids), is_known=number > 0 and not is_slip)
        return self._example(f"drill {index}", ids, is_supervised)

    def _events(self, score: tuple[int, int], dice: Dice) -> list[Event]:
        """Draw a line that gives the score, then events that may follow it, mostly goals."""
        events: list[Event] = [(EventKind.THROW_IN, dice.below(2))]
        while len(events) < self.settings.num_lines:
            event = self._next(events[-1], max(score) >= LAST_SCORE, dice)
            score = next_score(score, event)
            events.append(event)
        return events

    def _next(self, last: Event, is_full: bool, dice: Dice) -> Event:
        if last[0] is EventKind.GOAL and dice.chance(_KICK_OFF_PERCENT):
            return EventKind.KICK_OFF, 1 - last[1]
        side = dice.below(2)
        if dice.chance(self.settings.everyday_percent):
            return _EVERYDAY[dice.below(len(_EVERYDAY))], side
        if is_full:
            return EventKind.KICK_OFF, side
        return (EventKind.GOAL if dice.chance(self.settings.goal_percent) else EventKind.THROW_IN), side

    def _is_supervised(self, line: str, num_tokens: int, *, is_known: bool) -> list[bool]:
        """Return which tokens of a line follow from the lines before it: those after the colour."""
        call = parse_line(line)
        if call.score is None or not is_known:
            return [False] * num_tokens
        num_unknown = len(self.turn_format.speech_ids(line[: line.index(call.colour) + len(call.colour)]))
        return [False] * num_unknown + [True] * (num_tokens - num_unknown)

    def _example(self, name: str, ids: list[int], is_supervised: list[bool]) -> Example:
        tokens = self.turn_format.prologue_from_ids(ids)
        before = sum(segment.num_tokens for segment in tokens.segments[:2])
        mask = torch.zeros(len(tokens), dtype=torch.bool)
        mask[before : before + len(ids)] = torch.tensor(is_supervised)
        input_ids = torch.tensor(tokens.ids)
        return Example(
            name=name,
            input_ids=input_ids,
            labels=input_ids.masked_fill(~mask, IGNORED_LABEL),
            position_ids=contiguous_positions(tokens.segments),
            vision=torch.empty(0),
        )


class MixedDataset(Dataset):
    """Clips, of which ``drills_percent`` are replaced by drills at random."""

    def __init__(self, clips: Dataset, drills: Dataset, *, drills_percent: int, seed: int):
        self.clips = clips
        self.drills = drills
        self.drills_percent = drills_percent
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:
        is_drill = Dice(hashed(self.seed, index, len(self))).chance(self.drills_percent)
        return (self.drills if is_drill else self.clips)[index]
