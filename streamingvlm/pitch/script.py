"""What happens in a match, second by second: events, actors and zones, before anything has a place in the picture.

One second holds one beat. The chain of beats is a small state machine (a hold, then a pass, a tackle or a shot),
written as generators that hand the ball on: each returns the player who has it next.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from itertools import permutations

from streamingvlm.pitch.dice import Dice
from streamingvlm.pitch.field import (
    CENTRE_ZONE,
    NUM_COLUMNS,
    PLAYERS_PER_SIDE,
    ZONES,
    Point,
    distance,
    px,
    side_of,
)


class EventKind(StrEnum):
    """What a second is about; every second has exactly one."""

    SILENCE = "silence"
    PASS = "pass"
    TACKLE = "tackle"
    SHOT = "shot"
    GOAL = "goal"
    SAVE = "save"
    WIDE = "wide"
    THROW_IN = "throw-in"
    KICK_OFF = "kick-off"


@dataclass(frozen=True)
class Beat:
    """One second of the script.

    `actor` plays the ball, `other` is the one it goes to or is taken from (players 0 to 7, None for nobody).
    `zones` gives each player's zone as the second begins. `end` is the goal (0 left, 1 right) of a shot and of what
    follows it, `aim_y` the height at which the ball crosses that line. `score` is the score once the second is over.
    """

    index: int
    kind: EventKind
    zones: tuple[int, ...]
    score: tuple[int, int]
    attacks_right: int
    actor: int | None = None
    other: int | None = None
    end: int | None = None
    aim_y: int = 0

    @property
    def side(self) -> int | None:
        """The acting side of an event (the shooter's for a goal, a save, a wide), None for silence."""
        if self.kind is EventKind.SILENCE or self.actor is None:
            return None
        return side_of(self.actor)


Play = Generator[Beat, None, int]

# Tuned so that about four seconds in ten are silent; a test holds the frequencies.
_ACTIONS, _ACTION_WEIGHTS = (EventKind.PASS, EventKind.TACKLE, EventKind.SHOT), (56, 26, 18)
_OUTCOMES = (EventKind.GOAL, EventKind.SAVE, EventKind.WIDE)
_HOLD_WEIGHTS = {
    EventKind.PASS: (63, 23, 9, 5),
    EventKind.TACKLE: (50, 32, 12, 6),
    EventKind.SHOT: (0, 72, 19, 9),
}  # 0, 1, 2, 3 s
_OUT_OF_PLAY_PERCENT = 27
_MISPLACED_PERCENT = 25
_RUN_PERCENT = 65
_MIN_PASS = px(44)
_MAX_TACKLE_RUN = px(52)
_TAKER_ZONES, _MATE_ZONES = (1, 7), (3, 5)
LAST_SCORE = 9  # the count then starts again, which keeps a score to single digits


def _formation(kicking: int, dice: Dice) -> tuple[int, ...]:
    """The zones at a kick-off: a taker at the centre line, a mate behind or before him, everybody else anywhere.

    A house rule again: were sides to line up in their own halves, the picture of a goal would tell who attacks.
    """
    mine = [_TAKER_ZONES[dice.below(2)], _MATE_ZONES[dice.below(2)]]
    rest = [zone for zone in range(len(ZONES)) if zone not in (*mine, CENTRE_ZONE)]
    while len(mine) < PLAYERS_PER_SIDE:
        mine.append(rest.pop(dice.below(len(rest))))
    return (*mine, *rest) if kicking == 0 else (*rest, *mine)


def _lined_up(zones: tuple[int, ...], spots: tuple[int, ...]) -> tuple[int, ...]:
    """The same spots dealt out within each side so that its players have the shortest way."""
    lined_up: tuple[int, ...] = ()
    for start in (0, PLAYERS_PER_SIDE):
        mine = zones[start : start + PLAYERS_PER_SIDE]
        lined_up += min(permutations(spots[start : start + PLAYERS_PER_SIDE]), key=lambda order: _way(mine, order))
    return lined_up


def _way(zones: tuple[int, ...], spots: tuple[int, ...]) -> int:
    return sum(distance(ZONES[zone], ZONES[spot]) for zone, spot in zip(zones, spots, strict=True))


class Script:
    """The endless script of one match."""

    def __init__(self, seed: int) -> None:
        self._dice = Dice(seed)
        self._index = 0
        self._score = (0, 0)
        self._attacks_right, self._first = self._dice.below(2), self._dice.below(2)
        self._zones = _formation(self._first, self._dice)
        self._next_zones = self._drifted(self._zones)

    def beats(self) -> Generator[Beat, None, None]:
        """The seconds of the match, without end."""
        holder = yield from self._kick_off(self._first)
        while True:
            action = _ACTIONS[self._dice.weighted(_ACTION_WEIGHTS)]
            yield from self._hold(holder, self._dice.weighted(_HOLD_WEIGHTS[action]))
            if action is EventKind.PASS:
                holder = yield from self._pass(holder)
            elif action is EventKind.TACKLE:
                holder = yield from self._tackle(holder)
            else:
                holder = yield from self._shot(holder)

    def _beat(
        self,
        kind: EventKind,
        actor: int | None = None,
        other: int | None = None,
        end: int | None = None,
        aim_y: int = 0,
    ) -> Beat:
        """Close the second: players drift on, and the next one begins where they have drifted to."""
        beat = Beat(self._index, kind, self._zones, self._score, self._attacks_right, actor, other, end, aim_y)
        self._index += 1
        self._zones, self._next_zones = self._next_zones, self._drifted(self._next_zones)
        return beat

    def _drifted(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        """At times the free zone draws in a neighbour. Who has the ball plays no part: positions must not tell."""
        if not self._dice.chance(_RUN_PERCENT):
            return zones
        (free,) = set(range(len(ZONES))) - set(zones)
        neighbours = [player for player, zone in enumerate(zones) if _adjacent(zone, free)]
        runner = neighbours[self._dice.below(len(neighbours))]
        return (*zones[:runner], free, *zones[runner + 1 :])

    def _place(self, player: int) -> Point:
        return ZONES[self._next_zones[player]]

    def _pick(self, candidates: list[int]) -> int:
        return candidates[self._dice.below(len(candidates))]

    def _receivers(self, passer: int, side: int) -> list[int]:
        """The players of a side far enough off for a pass that is seen as one, or else the farthest one."""
        start = ZONES[self._zones[passer]]
        players = [player for player in _players(side) if player != passer]
        far = [player for player in players if distance(start, self._place(player)) >= _MIN_PASS]
        return far or [max(players, key=lambda player: distance(start, self._place(player)))]

    def _hold(self, holder: int, num_seconds: int) -> Generator[Beat, None, None]:
        for _ in range(num_seconds):
            yield self._beat(EventKind.SILENCE, holder)

    def _pass(self, passer: int) -> Play:
        if self._dice.chance(_OUT_OF_PLAY_PERCENT):
            return (yield from self._pass_out(passer))
        side = side_of(passer)
        if self._dice.chance(_MISPLACED_PERCENT):
            side = 1 - side
        receiver = self._pick(self._receivers(passer, side))
        yield self._beat(EventKind.PASS, passer, receiver)
        return receiver

    def _pass_out(self, passer: int) -> Play:
        """The ball runs over the touch-line; the other side throws it in where its thrower stands."""
        far = self._receivers(passer, 1 - side_of(passer))
        wings = [player for player in far if self._next_zones[player] // NUM_COLUMNS != 1]
        thrower = self._pick(wings or far)
        yield self._beat(EventKind.PASS, passer, thrower)
        return (yield from self._throw_in(thrower))

    def _throw_in(self, thrower: int) -> Play:
        receiver = self._pick(self._receivers(thrower, side_of(thrower)))
        yield self._beat(EventKind.THROW_IN, thrower, receiver)
        return receiver

    def _tackle(self, victim: int) -> Play:
        start = ZONES[self._zones[victim]]
        rivals = _players(1 - side_of(victim))
        near = [player for player in rivals if distance(start, ZONES[self._zones[player]]) <= _MAX_TACKLE_RUN]
        tackler = self._pick(near or [min(rivals, key=lambda player: distance(start, ZONES[self._zones[player]]))])
        yield self._beat(EventKind.TACKLE, tackler, victim)
        return tackler

    def _shot(self, shooter: int) -> Play:
        side = side_of(shooter)
        end = 1 if side == self._attacks_right else 0
        outcome = _OUTCOMES[self._dice.below(len(_OUTCOMES))]
        aim_y = self._aim(outcome)
        yield self._beat(EventKind.SHOT, shooter, end=end, aim_y=aim_y)
        if outcome is EventKind.GOAL:
            self._score = (self._score[0] + (side == 0), self._score[1] + (side == 1))
        yield self._beat(outcome, shooter, end=end, aim_y=aim_y)
        if outcome is EventKind.GOAL:
            self._change_ends(1 - side)
            yield self._beat(EventKind.SILENCE, end=end)
            return (yield from self._kick_off(1 - side))
        yield self._beat(EventKind.SILENCE, end=end)
        receiver = self._pick(list(_players(1 - side)))
        yield from self._hold(receiver, 1)
        return receiver

    def _aim(self, outcome: EventKind) -> int:
        if outcome is EventKind.WIDE:
            return px(self._dice.between(23, 31) if self._dice.chance(50) else self._dice.between(81, 89))
        if outcome is EventKind.SAVE:
            return px(self._dice.between(47, 65))
        return px(self._dice.between(43, 69))

    def _change_ends(self, kicking: int) -> None:
        """A house rule: ends change with every goal, so that the end of a shot does not tell who shoots."""
        self._attacks_right = 1 - self._attacks_right
        self._next_zones = _lined_up(self._zones, _formation(kicking, self._dice))

    def _kick_off(self, side: int) -> Play:
        if max(self._score) >= LAST_SCORE:
            self._score = (0, 0)
        by_zone = {self._zones[player]: player for player in _players(side)}
        taker = next(by_zone[zone] for zone in _TAKER_ZONES if zone in by_zone)
        mate = next(by_zone[zone] for zone in _MATE_ZONES if zone in by_zone)
        yield self._beat(EventKind.KICK_OFF, taker, mate)
        return mate


def _players(side: int) -> range:
    return range(side * PLAYERS_PER_SIDE, (side + 1) * PLAYERS_PER_SIDE)


def _adjacent(zone: int, free: int) -> bool:
    rows = abs(zone // NUM_COLUMNS - free // NUM_COLUMNS)
    columns = abs(zone % NUM_COLUMNS - free % NUM_COLUMNS)
    return rows + columns == 1
