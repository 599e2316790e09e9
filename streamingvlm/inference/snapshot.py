"""A stream kept on disk, to be taken up where it was left: after a kill, on another day, on another machine.

A snapshot holds all that changes while a stream runs: what the cache holds with its keys and values, the clock, the
random state, the settings. Kept after every turn it costs that turn's tokens alone: a token's key and value do not
change, so they stay in the file that they were written to for as long as the token is in sight. A file of which less
than half is still in sight is let go, and what is left of it is written anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from streamingvlm.cache.layout import CacheLayout, Segment, SegmentKind
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import ConfigError, SnapshotError
from streamingvlm.inference.decoder import StreamingDecoder, StreamState
from streamingvlm.inference.job import Job
from streamingvlm.inference.snapshot_folder import Part, SnapshotFolder, damaged, read_manifest, read_part
from streamingvlm.model.vision import VisionFeatures

if TYPE_CHECKING:
    from streamingvlm.inference.session import StreamingSession
    from streamingvlm.model.loading import StreamingModel

_LEAST_SHARE_IN_SIGHT = 0.5
_CONFIGS = {"cache": CacheConfig, "video": VideoConfig, "sampling": SamplingConfig}
_STATS = ("num_turns", "num_tokens", "stream_s", "busy_s", "cache_tokens")


class _Home(NamedTuple):
    """Where a token's key and value lie on disk."""

    file: str
    row: int


@dataclass(frozen=True)
class _TokenFile:
    part: Part
    num_tokens: int


class SaveJob(Job):
    """A snapshot between two turns of a stream that may be running."""

    is_fed = False

    def __init__(self, session: "StreamingSession", keeper: "SnapshotKeeper"):
        super().__init__(session)
        self._keeper = keeper

    def open_(self):
        self._keeper.save_(self.session)

    def close_(self):
        pass


class SnapshotKeeper:
    """Keeps a folder up to date with one stream, at the cost of what is new.

    Raises SnapshotError where the folder cannot be written or holds something else.
    """

    def __init__(self, path: str | Path):
        self._folder = SnapshotFolder(path)
        self._homes: dict[int, _Home] = {}  # of the tokens on disk, by their serial
        self._files: dict[str, _TokenFile] = {}
        self._number = 0

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    def save_(self, session: "StreamingSession"):
        """Write the session as it stands between two turns. A save that fails or is killed leaves the one before."""
        decoder = session.decoder
        # Where all that is kept is read anew with each turn, the cache has nothing to take up.
        num_cached = 0 if session.cache_config.recompute else decoder.kv.num_tokens
        serials = decoder.serials[:num_cached]
        self._number += 1
        homes, files = self._write_new_tokens(serials, decoder)
        names = {name: number for number, name in enumerate(files)}
        rows = [(names[homes[serial].file], homes[serial].row) for serial in serials]
        state = self._folder.write_part(f"state-{self._number}.safetensors", _state(session, rows))
        body = {**_document(session), "state": asdict(state), "tokens": [asdict(file.part) for file in files.values()]}
        self._folder.publish(body, [*(file.part for file in files.values()), state])
        self._homes, self._files = homes, files

    def _write_new_tokens(
        self, serials: Sequence[int], decoder: StreamingDecoder
    ) -> tuple[dict[int, _Home], dict[str, _TokenFile]]:
        """Write what has no home yet; return where each token lies then, and the files that hold them."""
        homes = self._homes_to_keep(serials)
        files = {name: self._files[name] for name in dict.fromkeys(home.file for home in homes.values())}
        new = [place for place, serial in enumerate(serials) if serial not in homes]
        if new:
            name = f"tokens-{self._number}.safetensors"
            places = torch.tensor(new, device=decoder.kv.keys.device)
            tensors = {kind: getattr(decoder.kv, kind).index_select(2, places) for kind in ("keys", "values")}
            files[name] = _TokenFile(self._folder.write_part(name, tensors), len(new))
            homes.update({serials[place]: _Home(name, row) for row, place in enumerate(new)})
        return homes, files

    def _homes_to_keep(self, serials: Sequence[int]) -> dict[int, _Home]:
        """Where the tokens in sight lie already, but for those whose file is mostly out of sight."""
        homes = {serial: self._homes[serial] for serial in serials if serial in self._homes}
        in_sight = Counter(home.file for home in homes.values())
        kept = {n for n, count in in_sight.items() if count >= _LEAST_SHARE_IN_SIGHT * self._files[n].num_tokens}
        return {serial: home for serial, home in homes.items() if home.file in kept}


def read_settings(path: str | Path, model: "StreamingModel") -> dict[str, Any]:
    """The settings of the stream in a snapshot, as the session's constructor takes them.

    Raises SnapshotError where there is no snapshot, a damaged one, or one of another model.
    """
    body = read_manifest(path)
    try:
        _check_model(path, body["model"], model)
        settings = body["settings"]
        configs = {name: kind(**settings[name]) for name, kind in _CONFIGS.items()}
        return {**configs, "query": settings["query"], "previous_text": settings["previous_text"]}
    except (KeyError, TypeError, ConfigError) as error:
        raise damaged(path, f"its settings are not those of this version: {error}") from error


def restore_(session: "StreamingSession", path: str | Path):
    """Put the stream of a snapshot into a session that was opened with its settings. Raises SnapshotError."""
    body = read_manifest(path)
    kept_as, engines = body["settings"]["cache"].get("dtype"), session.cache_config.dtype
    if kept_as != engines:
        raise SnapshotError(
            f"{path} keeps cache.dtype={kept_as}, the engine {engines}; load it into one of its own kind"
        )
    try:
        state = read_part(path, body["run"], Part(**body["state"]))
        files = [read_part(path, body["run"], Part(**part)) for part in body["tokens"]]
        _restore_decoder_(session.decoder, body["stream"], state, files)
        _restore_clock_(session, body["stream"], state["random_state"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise damaged(path, f"its parts do not fit together: {error}".splitlines()[0]) from error


def _document(session: "StreamingSession") -> dict[str, Any]:
    """All of a session that is no tensor, as JSON."""
    decoder, model = session.decoder, session.model
    settings = {name: asdict(getattr(session, f"{name}_config")) for name in _CONFIGS}
    return {
        "model": {"name": model.name, **_model_facts(model)},
        "settings": {**settings, "query": session.query, "previous_text": session.previous_text},
        "stream": {
            "num_turns": session.num_turns,
            "told_query": session.told_query,
            "stats": {name: getattr(session.stats, name) for name in _STATS},
            "next_position": decoder.next_position,
            "unread": [decoder.unread.start, decoder.unread.stop],
            "layout": [_row_of(segment) for segment in decoder.layout.segments],
            "grids": {str(turn): vision.grid for turn, vision in decoder.vision.items()},
        },
    }


def _model_facts(model: "StreamingModel") -> dict[str, str]:
    return {"fingerprint": model.fingerprint, "dtype": str(model.dtype), "device": model.device.type}


def _check_model(path: str | Path, kept: Mapping[str, str], model: "StreamingModel"):
    """The same tokens follow from the same weights alone, in the same precision, with the same random numbers."""
    for fact, here in _model_facts(model).items():
        if kept[fact] != here:
            what = "other weights" if fact == "fingerprint" else f"the {fact} {kept[fact]}, not {here}"
            raise SnapshotError(
                f"{path} is of the model {kept['name']!r} with {what} (given: {model.name!r}); load the model that "
                "made it, in the same way"
            )


def _state(session: "StreamingSession", rows: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The tensors of a session but for keys and values. rows: file and row of each cached token."""
    decoder = session.decoder
    tensors = {
        "ids": torch.tensor(decoder.ids, dtype=torch.long),
        "positions": decoder.positions,
        "homes": torch.tensor(rows, dtype=torch.int32).reshape(-1, 2),
        "random_state": session.sampler.generator.get_state(),
    }
    for turn, vision in decoder.vision.items():
        levels = (vision.embeddings, *vision.deepstack)
        tensors.update({f"vision.{turn}.{level}": tensor for level, tensor in enumerate(levels)})
    return tensors


def _restore_decoder_(
    decoder: StreamingDecoder,
    stream: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    files: Sequence[Mapping[str, torch.Tensor]],
):
    layout = CacheLayout(tuple(map(_segment_of, stream["layout"])))
    ids, positions, homes = state["ids"].tolist(), state["positions"], state["homes"].long()
    if not (len(ids) == layout.num_tokens == positions.shape[1] >= len(homes)):
        raise ValueError(f"{len(ids)} ids, {positions.shape[1]} positions, {layout.num_tokens} tokens in the layout")
    decoder.clear_()
    decoder.kv.reserve_(len(homes), is_bounded=True)
    for number, file in enumerate(files):
        places = (homes[:, 0] == number).nonzero()[:, 0]
        for kind in ("keys", "values"):
            buffer = getattr(decoder.kv, kind)
            rows = file[kind].index_select(2, homes[places, 1]).to(buffer.device)
            buffer[:, :, places.to(buffer.device)] = rows
    decoder.state = StreamState(
        layout=layout,
        ids=tuple(ids),
        positions=positions,
        next_position=stream["next_position"],
        num_cached=len(homes),
        unread=range(*stream["unread"]),
        vision={int(turn): _vision(turn, tuple(grid), state, decoder) for turn, grid in stream["grids"].items()},
        serials=tuple(decoder.new_serials(len(ids))),
    )


def _restore_clock_(session: "StreamingSession", stream: Mapping[str, Any], random_state: torch.Tensor):
    session.num_turns = stream["num_turns"]
    session.told_query = stream["told_query"]
    for name in _STATS:
        setattr(session.stats, name, stream["stats"][name])
    session.sampler.generator.set_state(random_state)


def _vision(turn: str, grid, state: Mapping[str, torch.Tensor], decoder: StreamingDecoder) -> VisionFeatures:
    names = sorted((n for n in state if n.startswith(f"vision.{turn}.")), key=lambda name: int(name.rpartition(".")[2]))
    embeddings, *deepstack = (state[name].to(decoder.model.device) for name in names)
    return VisionFeatures(embeddings, grid, tuple(deepstack))


def _row_of(segment: Segment) -> list:
    return [segment.kind.value, *astuple(segment)[1:]]


def _segment_of(row: Sequence) -> Segment:
    kind, num_tokens, turn, start_s, end_s, grid, temporal_step = row
    return Segment(SegmentKind(kind), num_tokens, turn, start_s, end_s, grid and tuple(grid), temporal_step)
