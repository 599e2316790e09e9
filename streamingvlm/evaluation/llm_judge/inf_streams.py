"""Inf-Streams-Eval: games of hours, commented without end or in chunks, and judged segment by segment.

Reads the published files: one of transcripts, a line a video, and one of segments, a line each, both of the shape
``{"video", "title", "content": [[start_s, end_s, text], ...]}``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from streamingvlm.config import at_least, one_of
from streamingvlm.data.sources import resolve_inside
from streamingvlm.errors import DataError
from streamingvlm.evaluation.candidates.clips import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedChunk, Piece, json_lines, merged, text_between
from streamingvlm.evaluation.llm_judge.generation import Assignment
from streamingvlm.evaluation.llm_judge.judging import Comparison

INSTRUCTIONS = """\
You compare two live commentaries on the same minutes of a sports broadcast. The reference is what the commentators on
air said in these minutes. First, weigh how far each reads like a commentary on air: its tone, its rhythm, its going
along with the play. Then weigh whether what it says is consistent in itself and true by the reference: who, what, the
score. Neither the order in which the two are shown nor their length is a merit. Answer with the letter of the better
one, A or B, and with nothing else."""

PROTOCOLS = ("fair", "paper")
MODES = ("infinite", "chunks")


@dataclass(frozen=True)
class InfStreamsConfig:
    """Under which conditions the candidates comment.

    protocol: ``fair`` tells both candidates the true commentary before ``start_s``; ``paper`` tells it the first alone,
        as the paper's evaluation does.
    mode: ``infinite`` is one stream a video, ``chunks`` cuts it into clips of ``chunk_s``, of which each is told what
        was said in those before. rival_mode: of the second candidate, None for the same.
    start_s: where commentary begins; query: asked of both.
    """

    protocol: str = "fair"
    mode: str = "infinite"
    rival_mode: str | None = None
    chunk_s: float = 100.0
    start_s: float = 1000.0
    query: str = ""

    def __post_init__(self):
        one_of("protocol", self.protocol, PROTOCOLS)
        one_of("mode", self.mode, MODES)
        one_of("rival_mode", self.rival_mode or self.mode, MODES)
        at_least("chunk_s", self.chunk_s, 1.0, "a chunk is a turn at least")
        at_least("start_s", self.start_s, 0, "seconds into the video")


@dataclass(frozen=True)
class Game:
    """A video and all that was said in it.

    name: its path as the dataset has it; video: where it is.
    """

    name: str
    video: Path
    pieces: tuple[Piece, ...]

    @property
    def end_s(self) -> float:
        """The end of the last word."""
        return max(piece.end_s for piece in self.pieces)


@dataclass(frozen=True)
class Segment:
    """A part of a game that is scored; position: where in the game it begins, 0 to 1."""

    video: str
    start_s: float
    end_s: float
    reference: str
    position: float


def read_games(path: Path, video_root: Path, *, num_videos: int | None = None) -> list[Game]:
    """Read the file of transcripts, its first ``num_videos`` lines; DataError for another layout."""
    games = []
    for where, line in json_lines(path):
        if num_videos is not None and len(games) == num_videos:
            break
        name, pieces = _titled_pieces(line, where)
        games.append(Game(name, resolve_inside(video_root, name), pieces))
    if not games:
        raise DataError(f"{path} holds no video; give the transcripts of Inf-Streams-Eval")
    # Published commentary goes by base names.
    if len({Path(game.name).name for game in games}) < len(games):
        raise DataError(f"{path} has two videos of one base name; give a line a video, and names that differ")
    return games


def read_segments(path: Path, games: Sequence[Game], *, start_s: float) -> list[Segment]:
    """Read those segments of the games that begin at ``start_s`` or later; DataError for another layout."""
    end_s = {Path(game.name).name: game.end_s for game in games}
    segments = []
    for where, line in json_lines(path):
        name, pieces = _titled_pieces(line, where)
        video, begins_s = Path(name).name, pieces[0].start_s
        if video in end_s and begins_s >= start_s:
            reference = " ".join(piece.text for piece in pieces)
            segments.append(Segment(video, begins_s, max(p.end_s for p in pieces), reference, begins_s / end_s[video]))
    if not segments:
        raise DataError(f"{path} has no segment of these {len(games)} videos from {start_s:g} s on; check both files")
    return segments


def assignments(games: Sequence[Game], config: InfStreamsConfig, *, is_rival: bool = False) -> list[Assignment]:
    """What the first candidate, or its rival, is to comment, under the conditions of the protocol."""
    mode = (config.rival_mode or config.mode) if is_rival else config.mode
    knows_history = config.protocol == "fair" or not is_rival
    return [_assignment(game, config, mode, knows_history) for game in games if game.end_s > config.start_s]


def comparisons(
    segments: Sequence[Segment], ours: Mapping[str, CommentedChunk], theirs: Mapping[str, CommentedChunk]
) -> Iterator[Comparison]:
    """A comparison a segment; commentary goes by the base names of videos. Raises DataError where one is missing."""
    for number, segment in enumerate(segments):
        texts = [_text_of(said, segment) for said in (ours, theirs)]
        name = f"{segment.video}:{number}:{segment.start_s:g}-{segment.end_s:g}"
        yield Comparison(name, segment.video, segment.reference, *texts, segment.position)


def by_base_name(said: Mapping[str, Sequence[CommentedChunk]]) -> dict[str, CommentedChunk]:
    """Merge the chunks of each video."""
    return {Path(name).name: merged(chunks) for name, chunks in said.items()}


def _assignment(game: Game, config: InfStreamsConfig, mode: str, knows_history: bool) -> Assignment:
    end_s = math.ceil(game.end_s)
    bounds_s = [config.start_s, end_s]
    if mode == "chunks":
        num_chunks = math.ceil((end_s - config.start_s) / config.chunk_s)
        bounds_s = [min(config.start_s + k * config.chunk_s, end_s) for k in range(num_chunks + 1)]
    history = text_between(game.pieces, -math.inf, config.start_s) if knows_history else ""
    clips = (Clip(game.video, a, b, config.query, history) for a, b in pairwise(bounds_s))
    return Assignment(game.name, tuple(clips))


def _text_of(said: Mapping[str, CommentedChunk], segment: Segment) -> str:
    if segment.video not in said:
        raise DataError(f"a candidate's commentary has nothing of {segment.video}; generate it, or leave the video out")
    return text_between(said[segment.video].pieces, segment.start_s, segment.end_s)


def _titled_pieces(line: Any, where: str) -> tuple[str, tuple[Piece, ...]]:
    try:
        pieces = tuple(Piece(float(start_s), float(end_s), text.strip()) for start_s, end_s, text in line["content"])
        name = line["video"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _another_layout(where) from error
    if not (pieces and isinstance(name, str) and name):
        raise _another_layout(where)
    return name, pieces


def _another_layout(where: str) -> DataError:
    return DataError(f"{where} is no line of Inf-Streams-Eval; expected video and content of [start_s, end_s, text]")
