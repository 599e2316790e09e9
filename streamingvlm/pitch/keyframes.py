"""Where everybody stands: a keyframe for each half second, from the script.

A keyframe is a function of its own beat and the next ones, never of the past. So the picture of a goal, a save or a
wide is the same whoever took the shot: which side it was has to be remembered.
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
from streamingvlm.pitch.script import Beat, EventKind

_TOUCH = DISC_RADIUS + BALL_RADIUS - px(1)  # centre to centre, ball at the feet
_LEAVING = DISC_RADIUS + BALL_RADIUS + px(3)  # a gap of three pixels: the ball has been played
_STRUCK = DISC_RADIUS + BALL_RADIUS + px(8)
_APART = 2 * DISC_RADIUS + px(2)
_CLEAR_OF_HELD_BALL = DISC_RADIUS + BALL_RADIUS + px(9)
_CLEAR_OF_CLASH = DISC_RADIUS + BALL_RADIUS + px(14)
_CLEAR_OF_FLYING_BALL = DISC_RADIUS + BALL_RADIUS + px(9)
_KEEPER_X = px(13)
_SAVING_X = px(9)
_IN_NET_X = px(4)
_SHOT_FROM_X = px(56)  # nearer shooters step back: the ball must have some way to fly
_SHOT_MIDWAY_X = px(28)
_WANDER = Point(px(3), px(5))
_WANDER_PERIOD_S = 3
_NUM_RELAXATIONS = 16


@dataclass(frozen=True)
class Keyframe:
    """Who is where at one instant: eight players (side 0 first), the left and the right keeper, the ball."""

    players: tuple[Point, ...]
    keepers: tuple[Point, Point]
    ball: Point


class Staging:
    """Turns the beats of one match into keyframes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def opening(self, beat: Beat, upcoming: Beat) -> Keyframe:
        """The keyframe at the start of a second."""
        players = [self._base(beat, player) for player in range(NUM_PLAYERS)]
        ball = self._open_ball(beat, upcoming, players)
        clearance = _CLEAR_OF_CLASH if beat.kind is EventKind.TACKLE else _CLEAR_OF_HELD_BALL
        return _keyframe(beat, players, ball, _roles(beat), clearance)

    def middle(self, beat: Beat, start: Keyframe, stop: Keyframe) -> Keyframe:
        """The keyframe half a second on, between the second's opening and the next one's."""
        players = [midpoint(a, b) for a, b in zip(start.players, stop.players, strict=True)]
        ball, roles = _middle_ball(beat, players, start, stop)
        return _keyframe(beat, players, ball, roles, _CLEAR_OF_HELD_BALL if roles else _CLEAR_OF_FLYING_BALL)

    def _base(self, beat: Beat, player: int) -> Point:
        zone = ZONES[beat.zones[player]]
        return Point(
            zone.x + self._noise(beat.index, 2 * player, _WANDER.x),
            zone.y + self._noise(beat.index, 2 * player + 1, _WANDER.y),
        )

    def _noise(self, second: int, channel: int, amplitude: int) -> int:
        """A smooth random walk of its own for every channel: values at every few seconds, lines between."""
        step, part = divmod(second, _WANDER_PERIOD_S)
        width = 2 * amplitude + 1
        start = _knot(self._seed, channel, step) % width - amplitude
        stop = _knot(self._seed, channel, step + 1) % width - amplitude
        return start + (stop - start) * part // _WANDER_PERIOD_S

    def _open_ball(self, beat: Beat, upcoming: Beat, players: list[Point]) -> Point:
        """Put the beat's actors in their places (in `players`) and return the ball's."""
        if beat.kind is EventKind.KICK_OFF:
            above = players[beat.actor].y < CENTRE.y
            players[beat.actor] = Point(CENTRE.x, CENTRE.y + (-_TOUCH if above else _TOUCH))
            return CENTRE
        if beat.kind is EventKind.THROW_IN:
            players[beat.actor] = touchline_spot(players[beat.actor])
            return players[beat.actor]
        if beat.kind is EventKind.TACKLE:
            victim = players[beat.other]
            contact = towards(victim, players[beat.actor], _TOUCH)
            players[beat.actor] = towards(victim, players[beat.actor], 2 * _TOUCH)
            return contact
        if beat.kind is EventKind.PASS:
            return towards(players[beat.actor], self._target(beat, upcoming), _LEAVING)
        if beat.kind is EventKind.SHOT:
            shooter = players[beat.actor]
            players[beat.actor] = Point(_stepped_back(shooter.x, beat.end), shooter.y)
            return towards(players[beat.actor], Point(mirrored(END, beat.end), beat.aim_y), _STRUCK)
        if beat.end is not None:
            return _dead_ball(beat)
        return towards(players[beat.actor], self._look(beat), _TOUCH)

    def _target(self, beat: Beat, upcoming: Beat) -> Point:
        spot = self._base(upcoming, beat.other)
        return touchline_spot(spot) if upcoming.kind is EventKind.THROW_IN else spot

    def _look(self, beat: Beat) -> Point:
        """A point that strolls about midfield: a holder keeps the ball on that side."""
        x = self._noise(beat.index, 2 * NUM_PLAYERS, px(20))
        y = self._noise(beat.index, 2 * NUM_PLAYERS + 1, px(20))
        return Point(CENTRE.x + x, CENTRE.y + y)


_knot = lru_cache(maxsize=1024)(hashed)  # a walk asks for the same two ends second after second


def touchline_spot(player: Point) -> Point:
    """Where a player takes a throw-in: in the strip behind the nearer touch-line."""
    return Point(player.x, px(8) if player.y < CENTRE.y else FIELD_UNITS - px(8))


def _stepped_back(x: int, end: int) -> int:
    return min(x, FIELD_UNITS - _SHOT_FROM_X) if end else max(x, _SHOT_FROM_X)


def _dead_ball(beat: Beat) -> Point:
    """The ball in the net, behind the line or in a keeper's hands."""
    if beat.kind is EventKind.SILENCE:
        return Point(mirrored(_KEEPER_X, beat.end), CENTRE.y)
    x = _SAVING_X if beat.kind is EventKind.SAVE else _IN_NET_X
    return Point(mirrored(x, beat.end), beat.aim_y)


def _roles(beat: Beat) -> tuple[int, ...]:
    """The players whose places the beat prescribes."""
    if beat.kind is EventKind.TACKLE:
        return (beat.actor, beat.other)
    if beat.end is not None and beat.kind is not EventKind.SHOT:
        return ()
    return (beat.actor,)


def _middle_ball(beat: Beat, players: list[Point], start: Keyframe, stop: Keyframe) -> tuple[Point, tuple[int, ...]]:
    """The ball's place at the half second, and the players who are at it (moved in `players`)."""
    if beat.kind is EventKind.TACKLE:
        return _won_ball(beat, players, start), (beat.actor, beat.other)
    if beat.kind is EventKind.SHOT:
        return _shot_midway(beat, start.ball), ()
    if beat.kind is EventKind.KICK_OFF:
        return towards(CENTRE, stop.ball, px(11)), ()
    if beat.end is not None:
        return start.ball, ()
    if beat.kind is EventKind.SILENCE:
        return towards(players[beat.actor], stop.ball, _TOUCH), (beat.actor,)
    return midpoint(start.ball, stop.ball), ()


def _won_ball(beat: Beat, players: list[Point], start: Keyframe) -> Point:
    """The tackler runs on with the ball, away from the victim, who stays where he was."""
    victim, tackler = start.players[beat.other], start.players[beat.actor]
    players[beat.other] = victim
    players[beat.actor] = clamped(towards(victim, tackler, distance(victim, tackler) + px(9)))
    ahead = towards(victim, tackler, 4 * _TOUCH)
    ball = towards(players[beat.actor], ahead, _TOUCH)
    if clamped(ball) == ball:
        return ball
    return towards(players[beat.actor], towards(victim, CENTRE, 4 * _TOUCH), _TOUCH)


def _shot_midway(beat: Beat, struck: Point) -> Point:
    """On the line from the foot to the aim, just before the keeper."""
    goal = Point(mirrored(END, beat.end), beat.aim_y)
    x = mirrored(_SHOT_MIDWAY_X, beat.end)
    return between(struck, goal, x - struck.x, goal.x - struck.x)


def _keyframe(beat: Beat, players: list[Point], ball: Point, roles: tuple[int, ...], clearance: int) -> Keyframe:
    free = [player for player in range(NUM_PLAYERS) if player not in roles]
    for _ in range(_NUM_RELAXATIONS):
        if not _relax_(players, free, ball, clearance):
            break
    return Keyframe(tuple(players), (_keeper(beat, 0, ball), _keeper(beat, 1, ball)), ball)


def _relax_(players: list[Point], free: list[int], ball: Point, clearance: int) -> bool:
    """Move the free players off the ball and off each other by one step; False when nobody was too close."""
    moved = False
    for player in free:
        place = players[player]
        for other, obstacle in enumerate(players):
            if other != player:
                place = _pushed(place, obstacle, _APART)
        place = _pushed(place, ball, clearance)
        moved |= place != players[player]
        players[player] = place
    return moved


def _pushed(place: Point, obstacle: Point, clearance: int) -> Point:
    """The place moved straight away from an obstacle, or round it where the edge of the field leaves no room."""
    if _is_clear(place, obstacle, clearance):
        return place
    pushed = clamped(towards(obstacle, place, clearance + 2))
    if _is_clear(pushed, obstacle, clearance):
        return pushed
    return clamped(towards(obstacle, _abreast(place, obstacle), clearance + 2))


def _is_clear(place: Point, obstacle: Point, clearance: int) -> bool:
    return (place.x - obstacle.x) ** 2 + (place.y - obstacle.y) ** 2 >= clearance**2


def _abreast(place: Point, obstacle: Point) -> Point:
    """The place turned a quarter about the obstacle, to the side of the centre spot."""
    dx, dy = place.x - obstacle.x, place.y - obstacle.y
    turns = Point(obstacle.x - dy, obstacle.y + dx), Point(obstacle.x + dy, obstacle.y - dx)
    return min(turns, key=lambda turned: distance(turned, CENTRE))


def _keeper(beat: Beat, end: int, ball: Point) -> Point:
    """Keepers follow the ball along their line; a beaten one has gone the wrong way."""
    home = Point(mirrored(_KEEPER_X, end), CENTRE.y + (ball.y - CENTRE.y) // 4)
    if beat.end != end or beat.kind is EventKind.SHOT:
        return home
    if beat.kind is EventKind.GOAL:
        return Point(home.x, CENTRE.y + (px(11) if ball.y < CENTRE.y else -px(11)))
    return home if beat.kind is EventKind.WIDE else ball
