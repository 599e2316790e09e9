"""Chunks of prepared data as training examples: previous text, turns with their vision, and replies.

The length of an example is computed from the size of its video, without decoding a frame; packing needs it in advance.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from streamingvlm.config import VideoConfig, at_least
from streamingvlm.data.chunks import chunk_tokens, previous_ids
from streamingvlm.data.prepared import PreparedData
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.model.family import Family
from streamingvlm.model.vision import Grid, resized_size
from streamingvlm.training.examples import Example, example_from
from streamingvlm.training.vision_cache import ChunkVision
from streamingvlm.turns import Tokens, Turn, TurnFormat

_LOG = logging.getLogger(__name__)
_NUM_NAMES_SHOWN = 3
_NUM_CHECKED = 256
_RECORDINGS_KEPT = 32


class VisionSource(Protocol):
    """Returns the vision of a chunk, as features or as the pixels to encode."""

    def __call__(self, recording: Mapping[str, Any], first_turn: int, num_turns: int) -> ChunkVision: ...


@dataclass(frozen=True)
class ChunkSettings:
    """The previous text of an example.

    text_sink_tokens, text_window_tokens, text_step_tokens: limits of the previous text, equal to those of the cache.
    has_previous_text: False leaves out all earlier text, including the text before the recording.
    """

    text_sink_tokens: int = 512
    text_window_tokens: int = 512
    text_step_tokens: int = 1
    has_previous_text: bool = True

    def __post_init__(self):
        for name, least in (("text_sink_tokens", 0), ("text_window_tokens", 0), ("text_step_tokens", 1)):
            at_least(name, getattr(self, name), least, "it counts tokens")


class ChunkDataset(Dataset):
    """The chunks of one split of prepared data, in stored order.

    turn_format, family, video: how the checkpoint represents a turn. max_chunks: at most this many, evenly spaced.
    Raises DataError for a split without chunks, and if the turns of the data are not as long as those of ``video``.
    """

    def __init__(
        self,
        prepared: PreparedData,
        turn_format: TurnFormat,
        vision: VisionSource,
        settings: ChunkSettings | None = None,
        *,
        family: Family,
        video: VideoConfig,
        split: str = "train",
        max_chunks: int | None = None,
    ):
        if prepared.turn_s != video.turn_s:
            raise DataError(
                f"{prepared.folder} has turns of {prepared.turn_s:g} s, expected {video.turn_s:g} s as in the "
                f"checkpoint; give video.turn_s={prepared.turn_s:g}, or prepare the data again"
            )
        self.prepared = prepared
        self.turn_format = turn_format
        self.vision = vision
        self.settings = settings or ChunkSettings()
        self.family = family
        self.video = video
        rows = np.flatnonzero(np.asarray(prepared.chunks["split"][:]) == split)
        if not len(rows):
            raise DataError(f"{prepared.folder} has no chunk of the split {split}; prepare more videos")
        if max_chunks is not None and len(rows) > max_chunks:
            rows = rows[np.linspace(0, len(rows) - 1, max_chunks).round().astype(int)]
        self.rows = rows
        self._row_of = {name: row for row, name in enumerate(prepared.recordings["id"][:])}
        self._line_lengths: dict[str, np.ndarray] = {}
        self._recordings: dict[str, Mapping[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        recording, turn_range = self._chunk(index)
        chunk = self.vision(recording, turn_range.start, len(turn_range))
        tokens = self._tokens(recording, turn_range, chunk.grids)
        return example_from(self.name(index), tokens, None, chunk=chunk)

    def name(self, index: int) -> str:
        """Return a readable name of a chunk: its video and its start."""
        recording, turn_range = self._chunk(index)
        return f"{recording['video']} at {self._start_s(recording, turn_range.start):g} s"

    def length(self, index: int) -> int:
        """Return the tokens of an example, assuming that its video still has the size it had when prepared."""
        recording, turn_range = self._chunk(index)
        t, h, w = self._grid(recording)
        # Built with one token per temporal patch; the other vision tokens only need to be counted.
        tokens = self._tokens(recording, turn_range, [(t, 1, 1)] * len(turn_range))
        return len(tokens) + len(turn_range) * t * (h * w - 1)

    def check_fits(self, pack_tokens: int):
        """Raise ConfigError if an example is longer than a pack.

        Vision dominates the length and is computed from the tables for all chunks; the exact length, which needs
        tokenization, is computed only for the chunks with the most vision tokens.
        """
        longest = np.argsort(-self._num_vision_tokens(), kind="stable")[:_NUM_CHECKED]
        for index in longest.tolist():
            if (length := self.length(index)) > pack_tokens:
                raise ConfigError(
                    f"{self.name(index)} is an example of {length} tokens, longer than pack_tokens={pack_tokens}; "
                    "raise pack_tokens, or lower video.max_pixels"
                )

    def _num_vision_tokens(self) -> np.ndarray:
        sizes = self.prepared.recordings.select_columns(["id", "height", "width"])
        tokens_per_turn = {recording["id"]: math.prod(self._grid(recording)) for recording in sizes}
        chunks = self.prepared.chunks.select_columns(["recording", "num_turns"]).select(self.rows)
        return np.array([chunk["num_turns"] * tokens_per_turn[chunk["recording"]] for chunk in chunks])

    def _chunk(self, index: int) -> tuple[Mapping[str, Any], range]:
        row = self.prepared.chunks[int(self.rows[index])]
        first = row["first_turn"]
        return self._recording(row["recording"]), range(first, first + row["num_turns"])

    def _recording(self, name: str) -> Mapping[str, Any]:
        """Return the row of a recording; rows hold hours of text, so the most recent ones are cached."""
        if name not in self._recordings:
            if len(self._recordings) == _RECORDINGS_KEPT:
                oldest = next(iter(self._recordings))
                del self._recordings[oldest]
                self._line_lengths.pop(oldest, None)
            self._recordings[name] = self.prepared.recordings[self._row_of[name]]
        return self._recordings[name]

    def _start_s(self, recording: Mapping[str, Any], turn: int) -> float:
        return recording["start_s"] + turn * self.video.turn_s

    def _tokens(self, recording: Mapping[str, Any], turn_range: range, grids: Sequence[Grid]) -> Tokens:
        turns = [
            Turn(index, self._start_s(recording, index), self._start_s(recording, index + 1), grid)
            for index, grid in zip(turn_range, grids, strict=True)
        ]
        lines = recording["lines"][turn_range.start : turn_range.stop]
        previous = self._previous_ids(recording, turn_range.start) if self.settings.has_previous_text else ()
        return chunk_tokens(self.turn_format, turns, lines, previous, query=recording["query"])

    def _previous_ids(self, recording: Mapping[str, Any], first_turn: int) -> tuple[int, ...]:
        sink, window = self.settings.text_sink_tokens, self.settings.text_window_tokens
        lines, num_dropped = drop_middle_lines(
            recording["lines"][:first_turn],
            self._lengths(recording)[:first_turn],
            sink_tokens=sink,
            window_tokens=window,
        )
        return previous_ids(
            self.turn_format,
            recording["previous_text"],
            lines,
            sink_tokens=sink,
            window_tokens=window,
            step_tokens=self.settings.text_step_tokens,
            num_left_out=num_dropped,
        )

    def _lengths(self, recording: Mapping[str, Any]) -> np.ndarray:
        """Return the tokens of each line of a recording; computed once."""
        if recording["id"] not in self._line_lengths:
            lengths = [len(self.turn_format.speech_ids(line)) for line in recording["lines"]]
            self._line_lengths[recording["id"]] = np.array(lengths, dtype=np.int32)
        return self._line_lengths[recording["id"]]

    def _grid(self, recording: Mapping[str, Any]) -> Grid:
        """Return the merged grid of a turn of a recording."""
        height, width = resized_size(
            self.video.num_frames,
            recording["height"],
            recording["width"],
            family=self.family,
            min_pixels=self.video.min_pixels,
            max_pixels=self.video.max_pixels,
            resize=self.video.resize,
        )
        t = math.ceil(self.video.num_frames / self.family.temporal_patch_size)
        return t, height // self.family.size_factor, width // self.family.size_factor


def drop_middle_lines(
    lines: Sequence[str], lengths: np.ndarray, *, sink_tokens: int, window_tokens: int
) -> tuple[Sequence[str], int]:
    """Drop the lines in the middle of a long text that lie outside sink and window in any case.

    Returns the other lines and the number of tokens dropped. `previous_ids` gives the same result for both, whatever
    text precedes the lines, and does not have to tokenize hours of text.
    """
    head = int(np.searchsorted(np.cumsum(lengths), sink_tokens)) + 1
    tail = int(np.searchsorted(np.cumsum(lengths[::-1]), window_tokens)) + 1
    if head + tail >= len(lines):
        return lines, 0
    return [*lines[:head], *lines[-tail:]], int(lengths[head:-tail].sum())


def check_videos_exist(prepared: PreparedData, video_root: Path, max_bad_fraction: float = 0.0):
    """Raise DataError if the videos of more than this share of the chunks are missing; warn of fewer."""
    videos = dict(zip(prepared.recordings["id"][:], prepared.recordings["video"][:], strict=True))
    missing = {video for video in set(videos.values()) if not (video_root / video).is_file()}
    if not missing:
        return
    num_bad = sum(videos[name] in missing for name in prepared.chunks["recording"][:])
    more = f" and {len(missing) - _NUM_NAMES_SHOWN} more" if len(missing) > _NUM_NAMES_SHOWN else ""
    found = (
        f"{len(missing)} of {len(set(videos.values()))} videos are not in {video_root} "
        f"({', '.join(sorted(missing)[:_NUM_NAMES_SHOWN])}{more})"
    )
    if num_bad > max_bad_fraction * len(prepared.chunks):
        raise DataError(f"{found}; put them there, or give video_root=FOLDER")
    _LOG.warning("%s; their %d of %d chunks are skipped", found, num_bad, len(prepared.chunks))
