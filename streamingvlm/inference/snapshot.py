"""Saving a stream to disk and restoring it: after a kill, on another day, on another machine.

A snapshot holds all that changes while a stream runs: cache layout, keys and values, clock, random state, settings.
Saved after every turn, it costs only that turn's tokens: a token's key and value never change, so they stay in the file
they were first written to. Once less than half of a file is still in the cache, the rest is written to a new one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from streamingvlm.cache.layout import CacheLayout, Segment, SegmentKind
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import ConfigError, SnapshotError
from streamingvlm.inference.sequence import SequenceState, TokenSequence
from streamingvlm.inference.snapshot_folder import Part, SnapshotFolder, damaged, read_manifest, read_part
from streamingvlm.inference.stream import StatsTotals, Stream, StreamState
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.vision import VisionFeatures

_MIN_USED_SHARE = 0.5
_CONFIGS = {"cache": CacheConfig, "video": VideoConfig, "sampling": SamplingConfig}


class TokenLocation(NamedTuple):
    """Where a token's key and value are on disk."""

    file: str
    row: int


@dataclass(frozen=True)
class _TokenFile:
    part: Part
    num_tokens: int


class SnapshotWriter:
    """Keeps a folder up to date with one stream, at the cost of what is new.

    Raises SnapshotError if the folder cannot be written or holds something else.
    """

    def __init__(self, path: str | Path):
        self._folder = SnapshotFolder(path)
        self._locations: dict[int, TokenLocation] = {}  # by token uid
        self._files: dict[str, _TokenFile] = {}
        self._num_saves = 0

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    def save(self, stream: Stream):
        """Write the stream as it is between two turns. A save that fails or is killed leaves the previous one."""
        state, kv, model = stream.state, stream.sequence.kv, stream.config.model
        # Under recompute, all keys are computed again with the next turn: nothing is worth saving.
        uids = () if stream.config.cache.recompute else state.sequence.token_uids[: state.sequence.num_cached]
        self._num_saves += 1
        locations, files = self._write_new_tokens(uids, {"keys": kv.keys, "values": kv.values})
        file_numbers = {name: number for number, name in enumerate(files)}
        rows = [(file_numbers[locations[uid].file], locations[uid].row) for uid in uids]
        part = self._folder.write_part(f"state-{self._num_saves}.safetensors", _tensors(state, rows))
        parts = [file.part for file in files.values()]
        body = {
            "model": {"name": model.name, **_model_identity(model)},
            "settings": _settings(stream),
            "stream": _document(state),
            "state": asdict(part),
            "tokens": list(map(asdict, parts)),
        }
        self._folder.publish(body, [*parts, part])
        self._locations, self._files = locations, files

    def autosave(self, stream: Stream):
        """Save as one stage of a turn: the hook of a stream that is saved after each turn."""
        with stream.stats.stage("autosave"):
            self.save(stream)

    def _write_new_tokens(
        self, uids: Sequence[int], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[dict[int, TokenLocation], dict[str, _TokenFile]]:
        """Write the tokens that are not on disk; return the location of each, and the files in use."""
        locations = self._usable_locations(uids)
        files = {name: self._files[name] for name in dict.fromkeys(location.file for location in locations.values())}
        new = [index for index, uid in enumerate(uids) if uid not in locations]
        if new:
            name = f"tokens-{self._num_saves}.safetensors"
            rows = {
                kind: buffer.index_select(2, torch.tensor(new, device=buffer.device))
                for kind, buffer in tensors.items()
            }
            files[name] = _TokenFile(self._folder.write_part(name, rows), len(new))
            locations.update({uids[index]: TokenLocation(name, row) for row, index in enumerate(new)})
        return locations, files

    def _usable_locations(self, uids: Sequence[int]) -> dict[int, TokenLocation]:
        """Return the locations of tokens on disk, without those in files that are mostly out of use."""
        locations = {uid: self._locations[uid] for uid in uids if uid in self._locations}
        num_used = Counter(location.file for location in locations.values())
        kept = {name for name, count in num_used.items() if count >= _MIN_USED_SHARE * self._files[name].num_tokens}
        return {uid: location for uid, location in locations.items() if location.file in kept}


def read_settings(path: str | Path, model: StreamingModel) -> dict[str, Any]:
    """Return the settings of a snapshot's stream, as the session's constructor takes them.

    Raises SnapshotError if there is no snapshot, if it is damaged, or of another model.
    """
    body = read_manifest(path)
    try:
        _check_model(path, body["model"], model)
        settings = body["settings"]
        configs = {name: kind(**settings[name]) for name, kind in _CONFIGS.items()}
        return {**configs, "query": settings["query"], "previous_text": settings["previous_text"]}
    except (KeyError, TypeError, ConfigError) as error:
        raise damaged(path, f"its settings are not those of this version: {error}") from error


def restore(stream: Stream, path: str | Path):
    """Restore a snapshot into a new stream with its settings. Raises SnapshotError."""
    body = read_manifest(path)
    saved_dtype, dtype = body["settings"]["cache"].get("dtype"), stream.config.cache.dtype
    if saved_dtype != dtype:
        raise SnapshotError(
            f"{path} has cache.dtype={saved_dtype}, but the engine has {dtype}; use an engine with the snapshot's"
        )
    try:
        tensors = read_part(path, body["run"], Part(**body["state"]))
        files = [read_part(path, body["run"], Part(**part)) for part in body["tokens"]]
        _restore_keys(stream.sequence, tensors["token_locations"].long(), files)
        stream.state = _read_state(stream.sequence, body["stream"], tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise damaged(path, f"its parts do not fit together: {error}".splitlines()[0]) from error


def _settings(stream: Stream) -> dict[str, Any]:
    configs = {name: asdict(getattr(stream.config, name)) for name in _CONFIGS}
    return {**configs, "query": stream.query, "previous_text": stream.previous_text}


def _model_identity(model: StreamingModel) -> dict[str, str]:
    return {"fingerprint": model.fingerprint, "dtype": str(model.dtype), "device": model.device.type}


def _check_model(path: str | Path, saved: Mapping[str, str], model: StreamingModel):
    """The same tokens need the same weights, in the same precision, with the same random numbers."""
    for key, given in _model_identity(model).items():
        if saved[key] != given:
            what = "other weights" if key == "fingerprint" else f"the {key} {saved[key]}, not {given}"
            raise SnapshotError(
                f"{path} is of the model {saved['name']!r} with {what} (given: {model.name!r}); load the model that "
                "made it, in the same way"
            )


def _document(state: StreamState) -> dict[str, Any]:
    """Return the part of a state that is JSON."""
    sequence = state.sequence
    return {
        "num_turns": state.num_turns,
        "cached_query": state.cached_query,
        "totals": asdict(state.totals),
        "next_position": sequence.next_position,
        "stale_range": [sequence.stale_range.start, sequence.stale_range.stop],
        "layout": [_row_of(segment) for segment in sequence.layout.segments],
        "grids": {str(turn): vision.grid for turn, vision in sequence.vision.items()},
    }


def _tensors(state: StreamState, rows: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state. rows: number of the file and row of each cached token."""
    sequence = state.sequence
    tensors = {
        "ids": torch.tensor(sequence.ids, dtype=torch.long),
        "positions": sequence.positions,
        "token_locations": torch.tensor(rows, dtype=torch.int32).reshape(-1, 2),
        "random_state": state.random_state,
    }
    for turn, vision in sequence.vision.items():
        levels = (vision.embeddings, *vision.deepstack)
        tensors.update({f"vision.{turn}.{level}": tensor for level, tensor in enumerate(levels)})
    return tensors


def _restore_keys(sequence: TokenSequence, locations: torch.Tensor, files: Sequence[Mapping[str, torch.Tensor]]):
    sequence.clear()
    sequence.kv.reserve_(len(locations), is_bounded=True)
    for number, file in enumerate(files):
        indices = (locations[:, 0] == number).nonzero()[:, 0]
        for kind in ("keys", "values"):
            buffer = getattr(sequence.kv, kind)
            rows = file[kind].index_select(2, locations[indices, 1]).to(buffer.device)
            buffer[:, :, indices.to(buffer.device)] = rows


def _read_state(
    sequence: TokenSequence, document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> StreamState:
    layout = CacheLayout(tuple(map(_segment_of, document["layout"])))
    ids, positions, num_cached = tensors["ids"].tolist(), tensors["positions"], len(tensors["token_locations"])
    if not (len(ids) == layout.num_tokens == positions.shape[1] >= num_cached):
        raise ValueError(f"{len(ids)} ids, {positions.shape[1]} positions, {layout.num_tokens} tokens in the layout")
    device = sequence.kv.keys.device
    state = SequenceState(
        layout=layout,
        ids=tuple(ids),
        positions=positions,
        next_position=document["next_position"],
        num_cached=num_cached,
        stale_range=range(*document["stale_range"]),
        vision={int(turn): _vision(turn, tuple(grid), tensors, device) for turn, grid in document["grids"].items()},
        token_uids=tuple(sequence.new_uids(len(ids))),
    )
    totals = StatsTotals(**document["totals"])
    return StreamState(state, document["num_turns"], document["cached_query"], totals, tensors["random_state"])


def _vision(turn: str, grid, tensors: Mapping[str, torch.Tensor], device: torch.device) -> VisionFeatures:
    prefix = f"vision.{turn}."
    names = sorted((name for name in tensors if name.startswith(prefix)), key=lambda n: int(n.removeprefix(prefix)))
    embeddings, *deepstack = (tensors[name].to(device) for name in names)
    return VisionFeatures(embeddings, grid, tuple(deepstack))


def _row_of(segment: Segment) -> list:
    return [segment.kind.value, *astuple(segment)[1:]]


def _segment_of(row: Sequence) -> Segment:
    kind, num_tokens, turn, start_s, end_s, grid, temporal_step = row
    return Segment(SegmentKind(kind), num_tokens, turn, start_s, end_s, grid and tuple(grid), temporal_step)
