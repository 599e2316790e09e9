"""What a frozen vision tower makes of each second of the recordings, encoded once and then reused.

Neighbouring chunks share half of their seconds, and the next epoch or the next run sees them all again. A second is
known by what decides its features, none of which needs it decoded: the content of the video file, the time, the frame
rate, the sizes, the resize, the decoder, and the weights of the tower.

The work is cut in two, because DataLoader workers can decode but hold no GPU. `VisionReader` knows no tower and may be
pickled: in a worker it returns the features that are kept and, for the seconds that are not, their patches, decoded in
one pass and resized. `CachedVision.encode` belongs to the process of the tower: it encodes the patches and keeps what
comes of them. A second is always encoded alone, so that its features do not depend on what else was missing, and a
resumed run sees the same bits. Encoding all recordings beforehand was the other choice; at 720 tokens a second of video
the features of a large dataset (5 MB a second for a 7B model) fit no disk, so that the cache must be bounded anyway.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.model.family import Family
from streamingvlm.model.vision import Grid, VisionEncoder, VisionFeatures, preprocess
from streamingvlm.training.content import file_identity, tensors_digest
from streamingvlm.training.feature_store import FeatureStore
from streamingvlm.video.reader import open_video

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERSION = 1  # of the features' meaning: a change here leaves all kept features behind


class UnseenSecond(NamedTuple):
    """A second that waits for the tower.

    pixels: [t * h * w, values of a patch], in the tower's type; patch_grid: (t, h, w); grid: the same after merging.
    """

    key: str
    pixels: torch.Tensor
    patch_grid: Grid
    grid: Grid


@dataclass
class VisionCounts:
    """What the reuse of vision gave so far; ``hits`` and ``encoded`` are seconds of video.

    decode_s: time spent reading and decoding, in whichever process; encode_s: time that the tower's process spent.
    """

    num_hits: int = 0
    num_encoded: int = 0
    num_corrupt: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0

    @property
    def hit_share(self) -> float:
        """Seconds that needed no tower, of all."""
        return self.num_hits / max(self.num_hits + self.num_encoded, 1)


class ReadChunk(NamedTuple):
    """The seconds of a chunk as a worker hands them over: features, or patches that wait for the tower."""

    seconds: tuple[VisionFeatures | UnseenSecond, ...]
    num_corrupt: int = 0
    decode_s: float = 0.0

    @property
    def grids(self) -> list[Grid]:
        """Merged grid (t, h, w) of each second."""
        return [second.grid for second in self.seconds]


class VisionReader:
    """The half that needs no tower: what is kept of a chunk's seconds, and the patches of what is not.

    tower_digest, dtype: of the weights that will encode the patches.
    video_root: what relative paths of recordings begin at.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        video: VideoConfig,
        family: Family,
        tower_digest: str,
        dtype: torch.dtype,
        video_root: str | Path = ".",
    ):
        self.store = store
        self.video = video
        self.family = family
        self.dtype = dtype
        self.video_root = Path(video_root)
        self._settings = (
            f"{_VERSION} {tower_digest} {dtype} {family.model_type} {video.fps:g} {video.turn_s:g} "
            f"{video.min_pixels} {video.max_pixels} {video.resize} {video.decoder}"
        )

    def __call__(self, recording: Mapping[str, Any], first_turn: int, num_turns: int) -> ReadChunk:
        """Return the seconds of a chunk of a recording.

        recording: a row of the prepared data: ``video``, and ``start_s`` where its first turn begins in that file.
        Raises VideoError for a file that cannot be read, or ends before the chunk does.
        """
        started = time.perf_counter()
        num_corrupt = self.store.counts.num_corrupt
        path = self.video_root / recording["video"]
        starts_s = [
            recording["start_s"] + turn * self.video.turn_s for turn in range(first_turn, first_turn + num_turns)
        ]
        keys = [self.key(path, start_s) for start_s in starts_s]
        seconds = [self.store.get(key) for key in keys]
        missing = [place for place, second in enumerate(seconds) if second is None]
        for place, frames in self._decoded(path, starts_s, missing):
            seconds[place] = self._unseen(keys[place], frames)
        num_corrupt = self.store.counts.num_corrupt - num_corrupt
        return ReadChunk(tuple(seconds), num_corrupt, time.perf_counter() - started)

    def key(self, path: str | Path, start_s: float) -> str:
        """Name of the second of a file that begins at ``start_s``. Raises VideoError."""
        try:
            content = file_identity(path)
        except OSError as error:
            raise VideoError(f"{str(path)!r} cannot be read ({error.strerror}); check the path to the video") from error
        # Microseconds, so that two ways to add up the same time agree.
        return hashlib.sha256(f"{self._settings} {content} {round(start_s * 1e6)}".encode()).hexdigest()

    def _decoded(
        self, path: Path, starts_s: Sequence[float], missing: Sequence[int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield place and frames of the missing seconds, in one pass from the first of them to the last."""
        if not missing:
            return
        wanted, first = set(missing), missing[0]
        config = self.video
        with open_video(
            path,
            fps=config.fps,
            turn_s=config.turn_s,
            decoder=config.decoder,
            prefetch=config.prefetch,
            start_s=starts_s[first],
        ) as reader:
            for place, second in zip(range(first, missing[-1] + 1), reader, strict=False):
                if place in wanted:
                    wanted.remove(place)
                    yield place, second.frames
        if wanted:
            raise VideoError(
                f"{str(path)!r} has no picture at {starts_s[min(wanted)]:g} s, where a chunk asks for one; "
                "prepare the data anew"
            )

    def _unseen(self, key: str, frames: torch.Tensor) -> UnseenSecond:
        config, merge = self.video, self.family.merge_size
        pixels, (t, h, w) = preprocess(
            frames,
            family=self.family,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            resize=config.resize,
        )
        return UnseenSecond(key, pixels.to(self.dtype), (t, h, w), (t, h // merge, w // merge))


class CachedVision:
    """The features of any seconds of any recording: kept ones where there are, else decoded, encoded and kept.

    tower: the vision tower of a model, frozen. family: of the checkpoint, with its sizes.
    video: frame rate, sizes and decoder, as the live session will have them.
    video_root: what relative paths of recordings begin at.

    ``reader`` is the half to give to DataLoader workers. Raises ConfigError for a tower that is being trained.
    """

    def __init__(
        self,
        tower: "PreTrainedModel",
        family: Family,
        video: VideoConfig,
        store: FeatureStore,
        *,
        video_root: str | Path = ".",
    ):
        if any(weight.requires_grad for weight in tower.parameters()):
            raise ConfigError(
                "the vision tower is being trained, so what it makes of a second cannot be kept; freeze it"
            )
        self.encoder = VisionEncoder(tower, family)
        self.store = store
        self.counts = VisionCounts()
        self.reader = VisionReader(
            store,
            video=video,
            family=family,
            tower_digest=tensors_digest(tower.state_dict().items()),
            dtype=tower.dtype,
            video_root=video_root,
        )

    def __call__(self, recording: Mapping[str, Any], first_turn: int, num_turns: int) -> list[VisionFeatures]:
        """Return the features of the seconds of a chunk, on the CPU; arguments and errors are those of the reader."""
        return self.encode(self.reader(recording, first_turn, num_turns))

    def encode(self, chunk: ReadChunk) -> list[VisionFeatures]:
        """Let the tower see the seconds that wait for it, keep what it makes of them, and return all, on the CPU."""
        started = time.perf_counter()
        features = [self._encoded(second) for second in chunk.seconds]
        self.counts.encode_s += time.perf_counter() - started
        self.counts.decode_s += chunk.decode_s
        self.counts.num_corrupt += chunk.num_corrupt
        return features

    def _encoded(self, second: VisionFeatures | UnseenSecond) -> VisionFeatures:
        if isinstance(second, VisionFeatures):
            self.counts.num_hits += 1
            return second
        self.counts.num_encoded += 1
        return self.store.put(second.key, self.encoder.features_of(second.pixels, second.patch_grid))

    def figures(self) -> dict[str, float]:
        """The counters as flat numbers, for a log."""
        counts, kept = self.counts, self.store.counts
        return {
            "vision/hit_share": counts.hit_share,
            "vision/encoded_s": counts.num_encoded * self.reader.video.turn_s,
            "vision/decode_s": counts.decode_s,
            "vision/encode_s": counts.encode_s,
            "vision/evicted": kept.num_evicted,
            "vision/corrupt": counts.num_corrupt,
            "vision/disk_bytes": self.store.num_disk_bytes,
        }
