"""Features of a frozen vision tower, encoded once per turn of a recording and then reused.

Neighbouring chunks share half of their turns, and every epoch and run uses the same turns again. The key of a turn is a
hash of everything that determines its features and needs no decoding: the content of the video file, the time, the
frame rate, the pixel limits, the resize, the decoder, and the weights of the tower.

DataLoader workers can decode but have no GPU, so the work is split. `VisionReader` holds no tower and can be pickled:
in a worker it looks up cached features and, for the turns that miss, decodes and preprocesses patches in one pass.
`CachedVision.encode` runs in the process that has the tower: it encodes those patches and stores the features. Each
turn is encoded alone, so that its features do not depend on which other turns missed, and a resumed run sees the same
bits. Encoding all recordings in advance was the alternative; at 720 tokens per second of video the features of a large
dataset (5 MB per second for a 7B model) do not fit on a disk, so the cache has to be bounded in any case.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.model.family import Family
from streamingvlm.model.vision import Grid, VisionEncoder, VisionFeatures, preprocess
from streamingvlm.training.digests import file_digest, tensors_digest
from streamingvlm.training.feature_store import FeatureStore
from streamingvlm.video.reader import open_video
from streamingvlm.video.source import EarlyEndError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERSION = 1  # part of every key: raise it when the same inputs give other features


class PendingVision(NamedTuple):
    """The patches of a turn that the tower has not encoded yet.

    pixels: [t * h * w, values of a patch], in the tower's dtype; patch_grid: (t, h, w); grid: the same after merging.
    """

    key: str
    pixels: torch.Tensor
    patch_grid: Grid
    grid: Grid


@dataclass
class VisionCounts:
    """Counters of the vision cache, in turns.

    decode_s: time spent reading and decoding, in all processes; encode_s: time spent encoding, in the tower's process.
    """

    num_hits: int = 0
    num_encoded: int = 0
    num_corrupt: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the turns that did not need the tower."""
        return self.num_hits / max(self.num_hits + self.num_encoded, 1)


class ChunkVision(NamedTuple):
    """The turns of a chunk as a worker returns them: features, or patches that the tower still has to encode."""

    turns: tuple[VisionFeatures | PendingVision, ...]
    num_corrupt: int = 0
    decode_s: float = 0.0

    @property
    def grids(self) -> list[Grid]:
        """Merged grid (t, h, w) of each turn."""
        return [turn.grid for turn in self.turns]


class VisionReader:
    """Reads the vision of chunks without a tower: cached features, and patches for the turns that miss.

    tower_digest, dtype: of the tower that will encode the patches.
    video_root: base folder of relative video paths.
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
            f"{video.min_pixels} {video.max_pixels} {video.resize} {video.decoder} "
            f"{family.image_mean} {family.image_std} {family.interpolation}"
        )

    def __call__(self, recording: Mapping[str, Any], first_turn: int, num_turns: int) -> ChunkVision:
        """Return the vision of a chunk of a recording.

        recording: a row of the prepared data, with ``video`` and the ``start_s`` of its first turn in that file.
        Raises VideoError for a file that cannot be read or that ends before the chunk does.
        """
        started = time.perf_counter()
        num_corrupt = self.store.counts.num_corrupt
        path = self.video_root / recording["video"]
        starts_s = [
            recording["start_s"] + turn * self.video.turn_s for turn in range(first_turn, first_turn + num_turns)
        ]
        keys = [self.key(path, start_s) for start_s in starts_s]
        turns = [self.store.get(key) for key in keys]
        missing = [index for index, turn in enumerate(turns) if turn is None]
        for index, frames in self._decode(path, starts_s, missing):
            turns[index] = self._pending(keys[index], frames)
        num_corrupt = self.store.counts.num_corrupt - num_corrupt
        return ChunkVision(tuple(turns), num_corrupt, time.perf_counter() - started)

    def key(self, path: str | Path, start_s: float) -> str:
        """Return the cache key of the turn of a file that begins at ``start_s``. Raises VideoError."""
        try:
            content = file_digest(path)
        except OSError as error:
            raise VideoError(f"{str(path)!r} cannot be read ({error.strerror}); check the path to the video") from error
        # In microseconds: sums of the same times in different orders differ in their last bits.
        return hashlib.sha256(f"{self._settings} {content} {round(start_s * 1e6)}".encode()).hexdigest()

    def _decode(
        self, path: Path, starts_s: Sequence[float], missing: Sequence[int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield index and frames of the missing turns, in one pass from the first of them to the last."""
        if not missing:
            return
        wanted, first = set(missing), missing[0]
        config = self.video
        reading = {"decoder": config.decoder, "prefetch": config.prefetch, "start_s": starts_s[first]}
        with (
            suppress(EarlyEndError),  # all turns are still wanted then
            open_video(path, fps=config.fps, turn_s=config.turn_s, **reading) as reader,
        ):
            for index, turn in zip(range(first, missing[-1] + 1), reader, strict=False):
                if index in wanted:
                    wanted.remove(index)
                    yield index, turn.frames
        if wanted:
            raise VideoError(
                f"{str(path)!r} has no frame at {starts_s[min(wanted)]:g} s, which a chunk needs: it is shorter "
                "than when it was prepared; prepare the data again"
            )

    def _pending(self, key: str, frames: torch.Tensor) -> PendingVision:
        config, merge = self.video, self.family.merge_size
        pixels, (t, h, w) = preprocess(
            frames,
            family=self.family,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            resize=config.resize,
        )
        return PendingVision(key, pixels.to(self.dtype), (t, h, w), (t, h // merge, w // merge))


class CachedVision:
    """A frozen vision tower with a cache of its features.

    tower: the vision tower of a model, frozen. family: of the checkpoint, with its sizes.
    video: frame rate, pixel limits and decoder, equal to those of inference.
    video_root: base folder of relative video paths.

    ``reader`` is the part for DataLoader workers. Raises ConfigError for a tower with trainable weights.
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
            raise ConfigError("the vision tower is trainable, so its features cannot be cached; freeze it")
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

    def encode(self, chunk: ChunkVision) -> list[VisionFeatures]:
        """Encode and store the pending turns of a chunk; return the features of all its turns, on the CPU."""
        started = time.perf_counter()
        features = [self._encode_turn(turn) for turn in chunk.turns]
        self.counts.encode_s += time.perf_counter() - started
        self.counts.decode_s += chunk.decode_s
        self.counts.num_corrupt += chunk.num_corrupt
        return features

    def _encode_turn(self, turn: VisionFeatures | PendingVision) -> VisionFeatures:
        if isinstance(turn, VisionFeatures):
            self.counts.num_hits += 1
            return turn
        self.counts.num_encoded += 1
        return self.store.put(turn.key, self.encoder.features_of(turn.pixels, turn.patch_grid))

    def metrics(self) -> dict[str, float]:
        """Return the counters as metrics for a log."""
        counts, stored = self.counts, self.store.counts
        return {
            "vision/hit_rate": counts.hit_rate,
            "vision/encoded_s": counts.num_encoded * self.reader.video.turn_s,
            "vision/decode_s": counts.decode_s,
            "vision/encode_s": counts.encode_s,
            "vision/evicted": stored.num_evicted,
            "vision/corrupt": counts.num_corrupt,
            "vision/disk_bytes": self.store.num_disk_bytes,
        }
