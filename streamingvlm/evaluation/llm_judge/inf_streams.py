"""Inf-Streams-Eval: games of hours, commented as one stream or in clips, and judged segment by segment.

Reads the published JSONL files: transcripts, a line per video, and segments, a line per segment. A line of either is
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
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.llm_judge.commentary_files import (
    CommentedClip,
    Utterance,
    json_lines,
    merge_clips,
    text_between,
)
from streamingvlm.evaluation.llm_judge.generation import CommentaryTask
from streamingvlm.evaluation.llm_judge.judging import Comparison

INSTRUCTIONS = """\
You compare two live commentaries on the same minutes of a sports broadcast. The reference is what the commentators on
air said in these minutes. First, weigh how far each reads like a commentary on air: its tone, its rhythm, its going
along with the play. Then weigh whether what it says is consistent in itself and true by the reference: who, what, the
score. Neither the order in which the two are shown nor their length is a merit. Answer with the letter of the better
one, A or B, and with nothing else."""

PROTOCOLS = ("fair", "paper")
MODES = ("infinite", "clips")


@dataclass(frozen=True)
class InfStreamsConfig:
    """The conditions under which the candidates comment.

    protocol: ``fair`` gives both sides the true commentary before ``start_s`` as previous text; ``paper`` gives it to
        the candidate alone, as the paper's evaluation does.
    mode: ``infinite`` is one stream per video; ``clips`` cuts the video into clips of ``clip_s``, each with the
        commentary of the clips before as previous text. rival_mode: the mode of the rival, None for the same.
    start_s: where commentary begins; query: given to both sides.
    """

    protocol: str = "fair"
    mode: str = "infinite"
    rival_mode: str | None = None
    clip_s: float = 100.0
    start_s: float = 1000.0
    query: str = ""

    def __post_init__(self):
        one_of("protocol", self.protocol, PROTOCOLS)
        one_of("mode", self.mode, MODES)
        one_of("rival_mode", self.rival_mode or self.mode, MODES)
        at_least("clip_s", self.clip_s, 1.0, "a clip has at least one turn")
        at_least("start_s", self.start_s, 0, "seconds into the video")


@dataclass(frozen=True)
class Game:
    """A video and its true commentary.

    name: the path in the dataset; video: the file.
    """

    name: str
    video: Path
    utterances: tuple[Utterance, ...]

    @property
    def end_s(self) -> float:
        """The end of the last utterance."""
        return max(utterance.end_s for utterance in self.utterances)


@dataclass(frozen=True)
class JudgedSegment:
    """A part of a game that is judged; position: its start as a fraction of the game, 0 to 1."""

    video: str
    start_s: float
    end_s: float
    reference: str
    position: float


def read_games(path: Path, video_root: Path, *, num_videos: int | None = None) -> list[Game]:
    """Read the transcripts, at most the first ``num_videos``. Raises DataError for another layout."""
    games = []
    for where, line in json_lines(path):
        if num_videos is not None and len(games) == num_videos:
            break
        name, utterances = _video_and_utterances(line, where)
        games.append(Game(name, resolve_inside(video_root, name), utterances))
    if not games:
        raise DataError(f"{path} holds no video; give the transcripts of Inf-Streams-Eval")
    # Files of commentary identify videos by their base names.
    if len({Path(game.name).name for game in games}) < len(games):
        raise DataError(f"{path} has two videos of one base name; give one line per video, with different base names")
    return games


def read_segments(path: Path, games: Sequence[Game], *, start_s: float) -> list[JudgedSegment]:
    """Read the segments of the games that begin at ``start_s`` or later. Raises DataError for another layout."""
    end_s = {Path(game.name).name: game.end_s for game in games}
    segments = []
    for where, line in json_lines(path):
        name, utterances = _video_and_utterances(line, where)
        video, begins_s = Path(name).name, utterances[0].start_s
        if video in end_s and begins_s >= start_s:
            reference = " ".join(utterance.text for utterance in utterances)
            segments.append(
                JudgedSegment(video, begins_s, max(u.end_s for u in utterances), reference, begins_s / end_s[video])
            )
    if not segments:
        raise DataError(f"{path} has no segment of these {len(games)} videos from {start_s:g} s on; check both files")
    return segments


def commentary_tasks(
    games: Sequence[Game], config: InfStreamsConfig, *, is_rival: bool = False
) -> list[CommentaryTask]:
    """Return the tasks of the candidate, or of its rival, under the conditions of the protocol."""
    mode = (config.rival_mode or config.mode) if is_rival else config.mode
    knows_history = config.protocol == "fair" or not is_rival
    return [_commentary_task(game, config, mode, knows_history) for game in games if game.end_s > config.start_s]


def comparisons(
    segments: Sequence[JudgedSegment], ours: Mapping[str, CommentedClip], theirs: Mapping[str, CommentedClip]
) -> Iterator[Comparison]:
    """Yield a comparison per segment; ours and theirs are by base names. Raises DataError for a missing video."""
    for number, segment in enumerate(segments):
        texts = [_text_of(side, segment) for side in (ours, theirs)]
        name = f"{segment.video}:{number}:{segment.start_s:g}-{segment.end_s:g}"
        yield Comparison(name, segment.video, segment.reference, *texts, segment.position)


def by_base_name(by_name: Mapping[str, Sequence[CommentedClip]]) -> dict[str, CommentedClip]:
    """Merge the clips of each video, under its base name."""
    return {Path(name).name: merge_clips(clips) for name, clips in by_name.items()}


def _commentary_task(game: Game, config: InfStreamsConfig, mode: str, knows_history: bool) -> CommentaryTask:
    end_s = math.ceil(game.end_s)
    bounds_s = [config.start_s, end_s]
    if mode == "clips":
        num_clips = math.ceil((end_s - config.start_s) / config.clip_s)
        bounds_s = [min(config.start_s + k * config.clip_s, end_s) for k in range(num_clips + 1)]
    history = text_between(game.utterances, -math.inf, config.start_s) if knows_history else ""
    clips = (Clip(game.video, a, b, config.query, history) for a, b in pairwise(bounds_s))
    return CommentaryTask(game.name, tuple(clips))


def _text_of(by_video: Mapping[str, CommentedClip], segment: JudgedSegment) -> str:
    if segment.video not in by_video:
        raise DataError(f"a candidate's commentary has nothing of {segment.video}; generate it or leave the video out")
    return text_between(by_video[segment.video].utterances, segment.start_s, segment.end_s)


def _video_and_utterances(line: Any, where: str) -> tuple[str, tuple[Utterance, ...]]:
    try:
        utterances = tuple(
            Utterance(float(start_s), float(end_s), text.strip()) for start_s, end_s, text in line["content"]
        )
        name = line["video"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _another_layout(where) from error
    if not (utterances and isinstance(name, str) and name):
        raise _another_layout(where)
    return name, utterances


def _another_layout(where: str) -> DataError:
    return DataError(f"{where} is no line of Inf-Streams-Eval; expected video and content of [start_s, end_s, text]")
