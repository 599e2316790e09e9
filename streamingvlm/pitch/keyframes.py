"""Positions of the players, keepers and ball: a keyframe per half second, from the script.

A keyframe depends on its own event and the next ones, never on earlier ones. So the frames of a goal, a save or a wide
are the same for either side, and a model must remember which side took the shot.
"""

from dataclasses import dataclass
from functools import lru_cache

from streamingvlm.pitch.dice import hashed
from streamingvlm.pitch.field import (
    BALL_RADIUS,
    CENTRE,
    DISC_RADIUS,
    END,
    FIELD_UNITS,
    NUM_PLAYERS,
    ZONES,
    Point,
    between,
    clamped,
    distance,
    midpoint,
    mirrored,
    px,
    towards,
)
from streamingvlm.pitch.script import EventKind, ScriptedEvent

_TOUCH = DISC_RADIUS + BALL_RADIUS - px(1)  # centre to centre, ball at the feet
_LEAVING = DISC_RADIUS + BALL_RADIUS + px(3)  # a gap of 3 pixels: the ball has been played
_STRUCK = DISC_RADIUS + BALL_RADIUS + px(8)
_APART = 2 * DISC_RADIUS + px(2)
_CLEAR_OF_HELD_BALL = DISC_RADIUS + BALL_RADIUS + px(9)
_CLEAR_OF_CLASH = DISC_RADIUS + BALL_RADIUS + px(14)
_CLEAR_OF_FLYING_BALL = DISC_RADIUS + BALL_RADIUS + px(9)
_KEEPER_X = px(13)
_SAVING_X = px(9)
_IN_NET_X = px(4)
_SHOT_FROM_X = px(56)  # nearer shooters step back, so that the ball travels a visible distance
_SHOT_MIDWAY_X = px(28)
_WANDER = Point(px(3), px(5))
_WANDER_PERIOD_S = 3
_MAX_SEPARATION_STEPS = 16


@dataclass(frozen=True)
class Keyframe:
    """Positions at one instant: eight players (side 0 first), the left and the right keeper, the ball."""

    players: tuple[Point, ...]
    keepers: tuple[Point, Point]
    ball: Point


class KeyframeBuilder:
    """Builds the keyframes of one match from its events."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def opening(self, event: ScriptedEvent, upcoming: ScriptedEvent) -> Keyframe:
        """Return the keyframe at the start of a second."""
        players = [self._base(event, player) for player in range(NUM_PLAYERS)]
        clearance = _CLEAR_OF_CLASH if event.kind is EventKind.TACKLE else _CLEAR_OF_HELD_BALL
        return _keyframe(event, players, self._open_ball(event, upcoming, players), _fixed_players(event), clearance)

    def middle(self, event: ScriptedEvent, start: Keyframe, stop: Keyframe) -> Keyframe:
        """Return the keyframe at the middle of a second; `start` and `stop` are this opening and the next."""
        players = [midpoint(a, b) for a, b in zip(start.players, stop.players, strict=True)]
        ball, fixed = _middle_ball(event, players, start, stop)
        return _keyframe(event, players, ball, fixed, _CLEAR_OF_HELD_BALL if fixed else _CLEAR_OF_FLYING_BALL)

    def _base(self, event: ScriptedEvent, player: int) -> Point:
        zone = ZONES[event.zones[player]]
        dx, dy = self._noise(event.index, 2 * player, _WANDER.x), self._noise(event.index, 2 * player + 1, _WANDER.y)
        return Point(zone.x + dx, zone.y + dy)

    def _noise(self, second: int, channel: int, amplitude: int) -> int:
        """Return a smooth random walk per channel: random values every few seconds, linearly interpolated."""
        step, part = divmod(second, _WANDER_PERIOD_S)
        width = 2 * amplitude + 1
        start = _knot(self._seed, channel, step) % width - amplitude
        stop = _knot(self._seed, channel, step + 1) % width - amplitude
        return start + (stop - start) * part // _WANDER_PERIOD_S

    def _open_ball(self, event: ScriptedEvent, upcoming: ScriptedEvent, players: list[Point]) -> Point:
        """Set the positions of the event's actors in `players`, and return the position of the ball."""
        if event.kind is EventKind.KICK_OFF:
            above = players[event.actor].y < CENTRE.y
            players[event.actor] = Point(CENTRE.x, CENTRE.y + (-_TOUCH if above else _TOUCH))
            return CENTRE
        if event.kind is EventKind.THROW_IN:
            players[event.actor] = touchline_spot(players[event.actor])
            return players[event.actor]
        if event.kind is EventKind.TACKLE:
            victim = players[event.other]
            contact = towards(victim, players[event.actor], _TOUCH)
            players[event.actor] = towards(victim, players[event.actor], 2 * _TOUCH)
            return contact
        if event.kind is EventKind.PASS:
            return towards(players[event.actor], self._target(event, upcoming), _LEAVING)
        if event.kind is EventKind.SHOT:
            shooter = players[event.actor]
            players[event.actor] = Point(_stepped_back(shooter.x, event.end), shooter.y)
            return towards(players[event.actor], Point(mirrored(END, event.end), event.aim_y), _STRUCK)
        if event.end is not None:
            return _dead_ball(event)
        return towards(players[event.actor], self._dribble_target(event), _TOUCH)

    def _target(self, event: ScriptedEvent, upcoming: ScriptedEvent) -> Point:
        spot = self._base(upcoming, event.other)
        return touchline_spot(spot) if upcoming.kind is EventKind.THROW_IN else spot

    def _dribble_target(self, event: ScriptedEvent) -> Point:
        """Return a point that wanders about midfield; a holder keeps the ball on that side."""
        x = self._noise(event.index, 2 * NUM_PLAYERS, px(20))
        y = self._noise(event.index, 2 * NUM_PLAYERS + 1, px(20))
        return Point(CENTRE.x + x, CENTRE.y + y)


_knot = lru_cache(maxsize=1024)(hashed)  # Successive seconds of a random walk use the same two values.


def touchline_spot(player: Point) -> Point:
    """Return the position of a throw-in: in the strip behind the nearer touch-line."""
    return Point(player.x, px(8) if player.y < CENTRE.y else FIELD_UNITS - px(8))


def _stepped_back(x: int, end: int) -> int:
    return min(x, FIELD_UNITS - _SHOT_FROM_X) if end else max(x, _SHOT_FROM_X)


def _dead_ball(event: ScriptedEvent) -> Point:
    """Return the position of the ball in the net, behind the line or in a keeper's hands."""
    if event.kind is EventKind.SILENCE:
        return Point(mirrored(_KEEPER_X, event.end), CENTRE.y)
    x = _SAVING_X if event.kind is EventKind.SAVE else _IN_NET_X
    return Point(mirrored(x, event.end), event.aim_y)


def _fixed_players(event: ScriptedEvent) -> tuple[int, ...]:
    """Return the players whose positions the event prescribes."""
    if event.kind is EventKind.TACKLE:
        return (event.actor, event.other)
    if event.end is not None and event.kind is not EventKind.SHOT:
        return ()
    return (event.actor,)


def _middle_ball(
    event: ScriptedEvent, players: list[Point], start: Keyframe, stop: Keyframe
) -> tuple[Point, tuple[int, ...]]:
    """Return the ball's position at half time, and the players at the ball (moved in `players`)."""
    if event.kind is EventKind.TACKLE:
        return _won_ball(event, players, start), (event.actor, event.other)
    if event.kind is EventKind.SHOT:
        return _shot_midway(event, start.ball), ()
    if event.kind is EventKind.KICK_OFF:
        return towards(CENTRE, stop.ball, px(11)), ()
    if event.end is not None:
        return start.ball, ()
    if event.kind is EventKind.SILENCE:
        return towards(players[event.actor], stop.ball, _TOUCH), (event.actor,)
    return midpoint(start.ball, stop.ball), ()


def _won_ball(event: ScriptedEvent, players: list[Point], start: Keyframe) -> Point:
    """Move the tackler and the ball away from the victim, who stays where he was; return the ball."""
    victim, tackler = start.players[event.other], start.players[event.actor]
    players[event.other] = victim
    players[event.actor] = clamped(towards(victim, tackler, distance(victim, tackler) + px(9)))
    ahead = towards(victim, tackler, 4 * _TOUCH)
    ball = towards(players[event.actor], ahead, _TOUCH)
    if clamped(ball) == ball:
        return ball
    return towards(players[event.actor], towards(victim, CENTRE, 4 * _TOUCH), _TOUCH)


def _shot_midway(event: ScriptedEvent, struck: Point) -> Point:
    """Return the ball on the line from the foot to the aim, just before the keeper."""
    goal = Point(mirrored(END, event.end), event.aim_y)
    x = mirrored(_SHOT_MIDWAY_X, event.end)
    return between(struck, goal, x - struck.x, goal.x - struck.x)


def _keyframe(
    event: ScriptedEvent, players: list[Point], ball: Point, fixed: tuple[int, ...], clearance: int
) -> Keyframe:
    free = [player for player in range(NUM_PLAYERS) if player not in fixed]
    for _ in range(_MAX_SEPARATION_STEPS):
        if not _separate(players, free, ball, clearance):
            break
    return Keyframe(tuple(players), (_keeper(event, 0, ball), _keeper(event, 1, ball)), ball)


def _separate(players: list[Point], free: list[int], ball: Point, clearance: int) -> bool:
    """Move the free players away from the ball and each other by one step; return False if nothing moved."""
    moved = False
    for player in free:
        position = players[player]
        for other, obstacle in enumerate(players):
            if other != player:
                position = _pushed(position, obstacle, _APART)
        position = _pushed(position, ball, clearance)
        moved |= position != players[player]
        players[player] = position
    return moved


def _pushed(position: Point, obstacle: Point, clearance: int) -> Point:
    """Move a position away from an obstacle, or around it if the edge of the field leaves no room."""
    if _is_clear(position, obstacle, clearance):
        return position
    pushed = clamped(towards(obstacle, position, clearance + 2))
    if _is_clear(pushed, obstacle, clearance):
        return pushed
    return clamped(towards(obstacle, _abreast(position, obstacle), clearance + 2))


def _is_clear(position: Point, obstacle: Point, clearance: int) -> bool:
    return (position.x - obstacle.x) ** 2 + (position.y - obstacle.y) ** 2 >= clearance**2


def _abreast(position: Point, obstacle: Point) -> Point:
    """Rotate a position by a quarter turn about the obstacle, to the side of the centre spot."""
    dx, dy = position.x - obstacle.x, position.y - obstacle.y
    turns = Point(obstacle.x - dy, obstacle.y + dx), Point(obstacle.x + dy, obstacle.y - dx)
    return min(turns, key=lambda turned: distance(turned, CENTRE))


def _keeper(event: ScriptedEvent, end: int, ball: Point) -> Point:
    """Return a keeper's position: on his line, following the ball; at a goal, on the wrong side."""
    home = Point(mirrored(_KEEPER_X, end), CENTRE.y + (ball.y - CENTRE.y) // 4)
    if event.end != end or event.kind is EventKind.SHOT:
        return home
    if event.kind is EventKind.GOAL:
        return Point(home.x, CENTRE.y + (px(11) if ball.y < CENTRE.y else -px(11)))
    return home if event.kind is EventKind.WIDE else ball
