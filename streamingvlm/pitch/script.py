"""The script of a match: one event per second with its actors and zones, before `keyframes` gives them positions.

The sequence of events is a small state machine: a hold, then a pass, a tackle or a shot. Each state is a generator that
yields its events and returns the player who has the ball next.
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
    """The kind of event of a second; every second has exactly one."""

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
class ScriptedEvent:
    """The event of one second.

    `actor` plays the ball; `other` receives it or loses it (players 0 to 7, or None). `zones` has each player's zone at
    the start of the second. `end` is the goal (0 left, 1 right) of a shot and of its outcome, `aim_y` the height at
    which the ball crosses the goal line. `score` is the score at the end of the second.
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
        """The acting side, or None for silence; a goal, save or wide has the side of the shooter."""
        if self.kind is EventKind.SILENCE or self.actor is None:
            return None
        return side_of(self.actor)


Play = Generator[ScriptedEvent, None, int]

# Tuned so that about 40 % of the seconds are silent; a test checks the frequencies.
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
LAST_SCORE = 9  # At the next kick-off the count restarts, which keeps every score to single digits.


def _formation(kicking: int, dice: Dice) -> tuple[int, ...]:
    """Draw the zones at a kick-off: a taker on the centre line, a mate to its left or right, all others in any zone.

    Unlike in football, sides do not line up in their own halves: the frames of a goal would show which side attacks.
    """
    mine = [_TAKER_ZONES[dice.below(2)], _MATE_ZONES[dice.below(2)]]
    rest = [zone for zone in range(len(ZONES)) if zone not in (*mine, CENTRE_ZONE)]
    while len(mine) < PLAYERS_PER_SIDE:
        mine.append(rest.pop(dice.below(len(rest))))
    return (*mine, *rest) if kicking == 0 else (*rest, *mine)


def _lined_up(zones: tuple[int, ...], spots: tuple[int, ...]) -> tuple[int, ...]:
    """Permute the spots within each side so that its players have the shortest total way."""
    lined_up: tuple[int, ...] = ()
    for start in (0, PLAYERS_PER_SIDE):
        mine = zones[start : start + PLAYERS_PER_SIDE]
        lined_up += min(
            permutations(spots[start : start + PLAYERS_PER_SIDE]), key=lambda order: _total_distance(mine, order)
        )
    return lined_up


def _total_distance(zones: tuple[int, ...], spots: tuple[int, ...]) -> int:
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

    def events(self) -> Generator[ScriptedEvent, None, None]:
        """Yield the events of the match, one per second, without end."""
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

    def _event(
        self,
        kind: EventKind,
        actor: int | None = None,
        other: int | None = None,
        end: int | None = None,
        aim_y: int = 0,
    ) -> ScriptedEvent:
        """Return the event of this second and advance: the players' next zones become the current ones."""
        event = ScriptedEvent(
            self._index, kind, self._zones, self._score, self._attacks_right, actor, other, end, aim_y
        )
        self._index += 1
        self._zones, self._next_zones = self._next_zones, self._drifted(self._next_zones)
        return event

    def _drifted(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        """At random, move a neighbour into the free zone. The ball has no influence, so positions reveal nothing."""
        if not self._dice.chance(_RUN_PERCENT):
            return zones
        (free,) = set(range(len(ZONES))) - set(zones)
        neighbours = [player for player, zone in enumerate(zones) if _adjacent(zone, free)]
        runner = neighbours[self._dice.below(len(neighbours))]
        return (*zones[:runner], free, *zones[runner + 1 :])

    def _next_position(self, player: int) -> Point:
        return ZONES[self._next_zones[player]]

    def _pick(self, candidates: list[int]) -> int:
        return candidates[self._dice.below(len(candidates))]

    def _receivers(self, passer: int, side: int) -> list[int]:
        """Return the players of a side that are far enough for a visible pass, or else the farthest one."""
        start = ZONES[self._zones[passer]]
        players = [player for player in _players(side) if player != passer]
        far = [player for player in players if distance(start, self._next_position(player)) >= _MIN_PASS]
        return far or [max(players, key=lambda player: distance(start, self._next_position(player)))]

    def _hold(self, holder: int, num_seconds: int) -> Generator[ScriptedEvent, None, None]:
        for _ in range(num_seconds):
            yield self._event(EventKind.SILENCE, holder)

    def _pass(self, passer: int) -> Play:
        if self._dice.chance(_OUT_OF_PLAY_PERCENT):
            return (yield from self._pass_out(passer))
        side = side_of(passer)
        if self._dice.chance(_MISPLACED_PERCENT):
            side = 1 - side
        receiver = self._pick(self._receivers(passer, side))
        yield self._event(EventKind.PASS, passer, receiver)
        return receiver

    def _pass_out(self, passer: int) -> Play:
        """Play a pass over the touch-line, then the other side's throw-in at its thrower's position."""
        far = self._receivers(passer, 1 - side_of(passer))
        wings = [player for player in far if self._next_zones[player] // NUM_COLUMNS != 1]
        thrower = self._pick(wings or far)
        yield self._event(EventKind.PASS, passer, thrower)
        return (yield from self._throw_in(thrower))

    def _throw_in(self, thrower: int) -> Play:
        receiver = self._pick(self._receivers(thrower, side_of(thrower)))
        yield self._event(EventKind.THROW_IN, thrower, receiver)
        return receiver

    def _tackle(self, victim: int) -> Play:
        start = ZONES[self._zones[victim]]
        rivals = _players(1 - side_of(victim))
        near = [player for player in rivals if distance(start, ZONES[self._zones[player]]) <= _MAX_TACKLE_RUN]
        tackler = self._pick(near or [min(rivals, key=lambda player: distance(start, ZONES[self._zones[player]]))])
        yield self._event(EventKind.TACKLE, tackler, victim)
        return tackler

    def _shot(self, shooter: int) -> Play:
        side = side_of(shooter)
        end = 1 if side == self._attacks_right else 0
        outcome = _OUTCOMES[self._dice.below(len(_OUTCOMES))]
        aim_y = self._aim(outcome)
        yield self._event(EventKind.SHOT, shooter, end=end, aim_y=aim_y)
        if outcome is EventKind.GOAL:
            self._score = (self._score[0] + (side == 0), self._score[1] + (side == 1))
        yield self._event(outcome, shooter, end=end, aim_y=aim_y)
        if outcome is EventKind.GOAL:
            self._change_ends(1 - side)
            yield self._event(EventKind.SILENCE, end=end)
            return (yield from self._kick_off(1 - side))
        yield self._event(EventKind.SILENCE, end=end)
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
        """Change ends after every goal, unlike in football, so that the end of a shot does not reveal the side."""
        self._attacks_right = 1 - self._attacks_right
        self._next_zones = _lined_up(self._zones, _formation(kicking, self._dice))

    def _kick_off(self, side: int) -> Play:
        if max(self._score) >= LAST_SCORE:
            self._score = (0, 0)
        by_zone = {self._zones[player]: player for player in _players(side)}
        taker = next(by_zone[zone] for zone in _TAKER_ZONES if zone in by_zone)
        mate = next(by_zone[zone] for zone in _MATE_ZONES if zone in by_zone)
        yield self._event(EventKind.KICK_OFF, taker, mate)
        return mate


def _players(side: int) -> range:
    return range(side * PLAYERS_PER_SIDE, (side + 1) * PLAYERS_PER_SIDE)


def _adjacent(zone: int, free: int) -> bool:
    rows = abs(zone // NUM_COLUMNS - free // NUM_COLUMNS)
    columns = abs(zone % NUM_COLUMNS - free % NUM_COLUMNS)
    return rows + columns == 1
