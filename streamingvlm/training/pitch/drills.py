"""Drills: matches in words alone, dense with what is remembered rather than seen.

Which club plays in red is said once, and the score is the last one with a goal added: both are skills of text. A clip
of 24 seconds asks for them once or twice among a thousand tokens; a drill of as many tokens asks a hundred times.
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
from streamingvlm.training.pitch.casting import Event, Slips, counted, draw_cast
from streamingvlm.training.pitch.drawn import DrawnDataset
from streamingvlm.turns import TurnFormat

_EVERYDAY = (EventKind.PASS, EventKind.TACKLE, EventKind.SHOT, EventKind.SAVE, EventKind.WIDE)
_KICK_OFF_PERCENT = 85  # after a goal; what comes between is at times left out of a previous text


@dataclass(frozen=True)
class DrillSettings:
    """How drills are drawn; percentages are of the lines.

    num_lines: lines of a drill.
    everyday_percent: lines that give neither club nor score.
    goal_percent: goals among the others, until the count is full.
    slips: how often what was said is wrong.
    """

    num_lines: int = 22
    everyday_percent: int = 25
    goal_percent: int = 65
    slips: Slips = field(default_factory=Slips)

    def __post_init__(self):
        if not isinstance(self.slips, Slips):
            object.__setattr__(self, "slips", Slips(**self.slips))
        if self.num_lines < 2:
            raise ConfigError(f"num_lines={self.num_lines} gives no line to continue from; give 2 or more")


class DrillDataset(DrawnDataset):
    """Drills drawn by the seed and their number, as the previous text of a stream."""

    def __init__(self, turns: TurnFormat, settings: DrillSettings, *, num_examples: int, seed: int):
        self.turns = turns
        self.settings = settings
        super().__init__(num_examples=num_examples, seed=seed)

    def draw(self, index: int, dice: Dice) -> Example:
        """Return a drill without vision; it asks for what the words before can tell, no colour and no event."""
        cast, first = draw_cast(dice), (dice.below(LAST_SCORE + 1), dice.below(LAST_SCORE + 1))
        said = cast.tell_with_slips(self._events(first, dice), first, self.settings.slips, dice)
        ids = list(self.turns.encode_plain(cast.introduction))
        is_asked = [False] * len(ids)
        for number, (line, is_slip) in enumerate(said):
            spoken = self.turns.speech_ids(line)
            ids += spoken
            is_asked += self._asked(line, len(spoken), is_known=number > 0 and not is_slip)
        return self._example(f"drill {index}", ids, is_asked)

    def _events(self, score: tuple[int, int], dice: Dice) -> list[Event]:
        """A line that gives the score, then what may follow, goals above all."""
        events: list[Event] = [(EventKind.THROW_IN, dice.below(2))]
        while len(events) < self.settings.num_lines:
            event = self._next(events[-1], max(score) >= LAST_SCORE, dice)
            score = counted(score, event)
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

    def _asked(self, line: str, num_tokens: int, *, is_known: bool) -> list[bool]:
        """Of a line's tokens, those that the words before it tell: all that stands behind the colour."""
        call = parse_line(line)
        if call.score is None or not is_known:
            return [False] * num_tokens
        told = len(self.turns.speech_ids(line[: line.index(call.colour) + len(call.colour)]))
        return [False] * told + [True] * (num_tokens - told)

    def _example(self, name: str, ids: list[int], is_asked: list[bool]) -> Example:
        tokens = self.turns.prologue_from_ids(ids)
        before = sum(segment.num_tokens for segment in tokens.segments[:2])
        asked = torch.zeros(len(tokens), dtype=torch.bool)
        asked[before : before + len(ids)] = torch.tensor(is_asked)
        input_ids = torch.tensor(tokens.ids)
        return Example(
            name=name,
            input_ids=input_ids,
            labels=input_ids.masked_fill(~asked, IGNORED_LABEL),
            position_ids=contiguous_positions(tokens.segments),
            vision=torch.empty(0),
        )


class Mixed(Dataset):
    """Clips, of which every so often one gives way to a drill."""

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
