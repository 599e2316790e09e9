"""Examples for the language model: clips of footage with the commentary that they call for.

An example depends on the seed and its own number alone. The previous text is a shortcut that a model would rather take
than look: it is at times cut down to what cannot be seen, at times altered where it does not matter.
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
from streamingvlm.training.pitch.architecture import PICTURE_GRID
from streamingvlm.training.pitch.casting import Cast, Event, Said, Slips, draw_cast
from streamingvlm.training.pitch.drawn import DrawnDataset
from streamingvlm.training.pitch.footage import Footage
from streamingvlm.turns import Turn, TurnFormat

_EVERYDAY = frozenset({EventKind.SILENCE, EventKind.PASS, EventKind.TACKLE})
_LONGEST_STREAM_S = 3 * 3600
_GOAL_S = 4  # the shot, the goal, a silence, the kick-off
Clip = tuple[list[int], list[Said], tuple[int, ...]]  # its seconds, their lines, the ids of its previous text
_ALTERED_LINES = ("", "pass by red", "pass by blue", "pass by yellow", "pass by black", "shot")


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn; percentages are of the clips.

    clip_turns: seconds in a clip.
    overlap_turns: seconds that neighbouring clips share (the chunks of the paper); None: they begin anywhere.
    opening_percent: clips that begin with the match, with nothing said before but the introduction.
    goals_percent: clips of nothing but goals of one match in any order, each from its shot to its kick-off, counted on
        from any score.
    goal_gap_turns: the most everyday seconds before such a goal. The score is then read from far back, and it is the
        distance that makes it hard: one goal right after the other teaches it for the nearest line alone.
    throw_ins_percent: of such goals, those that a throw-in goes before, which says the score again.
    highlights_percent: of the others, clips that leave out the everyday seconds (silence, passes, tackles), so that
        what is rare comes often: shots and what becomes of them, throw-ins, kick-offs, and with them the score.
    mute_percent: clips without any previous text, the introduction included.
    forgetful_percent: of the others, clips whose previous text is the introduction and the last line with a score.
    altered_percent: clips whose previous text has every third line without a score replaced by one that is not true.
    slips: how often what was said before is wrong about the score; a slip is heard, never asked for.
    text_sink_tokens, text_window_tokens: what the cache will keep of the previous text.
    """

    clip_turns: int = 24
    overlap_turns: int | None = None
    opening_percent: int = 4
    goals_percent: int = 0
    goal_gap_turns: int = 0
    throw_ins_percent: int = 0
    highlights_percent: int = 25
    mute_percent: int = 0
    forgetful_percent: int = 15
    altered_percent: int = 25
    slips: Slips = field(default_factory=Slips)
    text_sink_tokens: int = 32
    text_window_tokens: int = 128

    def __post_init__(self):
        if not isinstance(self.slips, Slips):
            object.__setattr__(self, "slips", Slips(**self.slips))
        if self.clip_turns < 1:
            raise ConfigError(f"clip_turns={self.clip_turns} leaves nothing to learn from; give 1 or more")


class ClipDataset(DrawnDataset):
    """Clips drawn from footage: ``num_examples`` of them, each by the seed and its number.

    footage: all of it encoded, or none, for a tower that learns, too. style: in which the matches are commented on.
    """

    def __init__(
        self,
        footage: Sequence[Footage],
        turns: TurnFormat,
        settings: ClipSettings,
        *,
        num_examples: int,
        seed: int,
        style: Style = TELEGRAM,
    ):
        shortest = min(len(film) for film in footage)
        if shortest <= settings.clip_turns:
            raise ConfigError(f"footage of {shortest} s is too short for clips of {settings.clip_turns}; film more")
        self.footage = footage
        self.turns = turns
        self.settings = settings
        super().__init__(num_examples=num_examples, seed=seed)
        self.style = style

    def draw(self, index: int, dice: Dice) -> Example:
        """Return a clip with its vision and the words that it calls for."""
        number = dice.below(len(self.footage))
        film = self.footage[number]
        cast, events = recast(film, dice)
        if dice.chance(self.settings.goals_percent):
            places, said, previous = self._goals(film, cast, events, dice)
        else:
            places, said, previous = self._stretch(film, cast, events, dice)
        shown = film.shown(places, dice.below(film.num_mirrorings))
        offset_s = dice.below(_LONGEST_STREAM_S) if places[0] else 0
        seconds = [Turn(offset_s + n, offset_s + n, offset_s + n + 1, PICTURE_GRID) for n in range(len(places))]
        tokens = chunk_tokens(self.turns, seconds, [line for line, _ in said], previous)
        example = example_from(f"match {number}, second {places[0]}", tokens, shown)
        slipped = {turn.index for turn, (_, is_slip) in zip(seconds, said, strict=True) if is_slip}
        is_slip = torch.tensor([s.turn in slipped for s in tokens.segments for _ in range(s.num_tokens)])
        return replace(example, labels=example.labels.masked_fill(is_slip, IGNORED_LABEL))

    def _stretch(self, film: Footage, cast: Cast, events: list[Event], dice: Dice) -> Clip:
        """Seconds in their order, with all that was said before them."""
        places = self._places(film, dice)
        first = (0, 0) if places[0] == 0 else _any_score(dice)
        said = cast.tell_with_slips(events, first, self.settings.slips, dice, self.style)
        return places, [said[place] for place in places], self._previous_ids(cast, said[: places[0]], dice)

    def _goals(self, film: Footage, cast: Cast, events: list[Event], dice: Dice) -> Clip:
        """Goals in any order, after a line that gives the score and what was said of other goals.

        A goal that slips to the other side looks like one of that side, too: the kick-off alone tells whose it was.
        """
        gap_turns, throw_ins_percent = self.settings.goal_gap_turns, self.settings.throw_ins_percent
        places = shuffled_goals(film, dice, gap_turns=gap_turns, throw_ins_percent=throw_ins_percent)
        told = [(EventKind.THROW_IN, dice.below(2)), *(events[p] for p in places)]
        score_line, *said = cast.tell_with_slips(told, _any_score(dice), self.settings.slips, dice, self.style)
        first = dice.below(max(1, len(places) - self.settings.clip_turns + 1))
        clip = slice(first, first + self.settings.clip_turns)
        is_other = [
            is_slip and self.style.parse_line(line).colour != cast.colours[events[place][1]]
            for place, (line, is_slip) in zip(places, said, strict=True)
        ]
        seen = _pictures_of_slips(places, is_other, events, dice)
        return seen[clip], said[clip], self._previous_ids(cast, [score_line, *said[:first]], dice)

    def _places(self, film: Footage, dice: Dice) -> list[int]:
        """The seconds of a stretch."""
        num_turns = self.settings.clip_turns
        if dice.chance(self.settings.opening_percent):
            return list(range(num_turns))
        places = list(range(len(film)))
        if dice.chance(self.settings.highlights_percent):
            rare = [place for place in places if film.seconds[place].kind not in _EVERYDAY]
            places = rare if len(rare) > num_turns else places
        start = self._start(len(places), dice)
        return places[start : start + num_turns]

    def _start(self, num_places: int, dice: Dice) -> int:
        num_turns, overlap_turns = self.settings.clip_turns, self.settings.overlap_turns
        if overlap_turns is None:
            return dice.below(num_places - num_turns)
        chunks = plan_chunks(num_places, chunk_turns=num_turns, overlap_turns=overlap_turns)
        whole = [chunk.start for chunk in chunks if len(chunk) == num_turns]
        return whole[dice.below(len(whole))]

    def _previous_ids(self, cast: Cast, said: list[Said], dice: Dice) -> tuple[int, ...]:
        if dice.chance(self.settings.mute_percent):
            return ()
        lines = [line for line, _ in said]
        has_score = [self.style.parse_line(line).score is not None for line in lines]
        if dice.chance(self.settings.forgetful_percent):
            is_true = [not is_slip for _, is_slip in said]
            lines = [line for line, *known in zip(lines, has_score, is_true, strict=True) if all(known)][-1:]
        elif dice.chance(self.settings.altered_percent):
            lines = [
                _ALTERED_LINES[dice.below(len(_ALTERED_LINES))] if dice.below(3) == 0 and not scored else line
                for line, scored in zip(lines, has_score, strict=True)
            ]
        return previous_ids(
            self.turns,
            cast.introduction,
            lines,
            sink_tokens=self.settings.text_sink_tokens,
            window_tokens=self.settings.text_window_tokens,
        )


def recast(film: Footage, dice: Dice) -> tuple[Cast, list[Event]]:
    """The events of a match under clubs drawn anew, either side named first."""
    flip, clubs = dice.below(2), draw_cast(dice).clubs
    colours = film.seconds[0].colours
    cast = Cast((colours[flip], colours[1 - flip]), clubs)
    return cast, [(s.kind, None if s.side is None else s.side ^ flip) for s in film.seconds]


def shuffled_goals(film: Footage, dice: Dice, *, gap_turns: int = 0, throw_ins_percent: int = 0) -> list[int]:
    """Places of the goals of a match in random order, each from the shot to the kick-off that follows.

    Before each, and before the throw-in that goes before some of them, up to ``gap_turns`` everyday seconds: mostly
    few, at times all of them, as a match waits for its next score.
    """
    goals = [place for place, second in enumerate(film.seconds[:-2]) if second.kind is EventKind.GOAL]
    everyday = [place for place, second in enumerate(film.seconds) if second.kind in _EVERYDAY]
    throw_ins = [place for place, second in enumerate(film.seconds) if second.kind is EventKind.THROW_IN]
    places: list[int] = []
    while goals:
        goal = goals.pop(dice.below(len(goals)))
        if throw_ins and dice.chance(throw_ins_percent):
            places += [*_gap(everyday, gap_turns, dice), throw_ins[dice.below(len(throw_ins))]]
        places += [*_gap(everyday, gap_turns, dice), *range(goal - 1, goal - 1 + _GOAL_S)]
    return places


def _gap(everyday: list[int], most_turns: int, dice: Dice) -> list[int]:
    num_turns = dice.below(dice.below(most_turns + 1) + 1)
    start = dice.below(max(1, len(everyday) - num_turns))
    return everyday[start : start + num_turns]


def _pictures_of_slips(places: list[int], is_other: list[bool], events: list[Event], dice: Dice) -> list[int]:
    """The places to be shown: for a goal given to the other side those of a goal of that side, if the match has one."""
    shown = list(places)
    for number, (place, is_other_side) in enumerate(zip(places, is_other, strict=True)):
        if not (is_other_side and events[place][0] is EventKind.GOAL):
            continue
        others = [p for p in places if events[p] == (EventKind.GOAL, 1 - events[place][1])]
        if others:
            other = others[dice.below(len(others))]
            shown[number - 1 : number + 2] = range(other - 1, other + 2)  # from the shot to the silence
    return shown


def _any_score(dice: Dice) -> tuple[int, int]:
    """A score with room for a goal before the next kick-off; at times one goal short of where it starts again."""
    score = [dice.below(LAST_SCORE), dice.below(LAST_SCORE)]
    if dice.below(3) == 0:
        score[dice.below(2)] = LAST_SCORE - 1
    return score[0], score[1]
