"""The runs behind the ablation tables: each is streamed once and stored in a file.

The file name is a digest of everything that determines the commentary (weights, settings, seed, length), not of the
table. Tables therefore share runs, and an interrupted table resumes with the first missing run.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, resolve
from streamingvlm.errors import StreamingVLMError
from streamingvlm.evaluation.pitch.ablation_tables import AblationRow
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.evaluation.pitch.run import PitchRun, read_run, write_run
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.checkpoint import find_checkpoint, read_config_json
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.stream_settings import read_stream_settings
from streamingvlm.pitch.styles import STYLES


@dataclass(frozen=True)
class RunSetup:
    """The settings that all runs of a table share.

    model: name, device, dtype and quantization, the arguments of ``load_model``; cache, video, sampling: settings of
    the session, None for the checkpoint's own; commit: of the code, for the record.
    """

    model: Mapping[str, Any]
    duration_s: int
    cache: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    style: str = "telegram"
    limits: StreamLimits = field(default_factory=StreamLimits)
    commit: str | None = None

    def session_settings(self, checkpoint: str | None = None) -> dict[str, CacheConfig | VideoConfig | SamplingConfig]:
        """Return the settings of a session on a checkpoint (None: the setup's); only its config is loaded."""
        folder = find_checkpoint(checkpoint or self.model["name"])
        trained = read_stream_settings(read_config_json(folder), folder)
        kinds = {"cache": CacheConfig, "video": VideoConfig, "sampling": SamplingConfig}
        return {name: resolve(kind, getattr(self, name), trained) for name, kind in kinds.items()}


@dataclass(frozen=True)
class AblationRun:
    """One run: a row of a table on the match of a seed.

    settings: the settings of the session, including the row's own. Raises ConfigError if they exclude each other.
    """

    row: AblationRow
    seed: int
    setup: RunSetup
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self):
        settings = self.setup.session_settings(self.row.checkpoint)
        cache = replace(settings["cache"], **self.row.cache)
        object.__setattr__(self, "settings", settings | {"cache": cache})  # the class is frozen

    @property
    def model(self) -> dict[str, Any]:
        """The arguments of ``load_model``."""
        return dict(self.setup.model) | ({"name": self.row.checkpoint} if self.row.checkpoint else {})

    @property
    def path(self) -> Path:
        """The file of its record: the same for all runs with the same commentary."""
        determinants = {
            "model": {**self.model, "name": fingerprint(self.model["name"])},
            "settings": {name: asdict(config) for name, config in self.settings.items()},
            "limits": asdict(self.setup.limits),
            "black_frames": self.row.black_frames,
            "style": self.setup.style,
            "duration_s": self.setup.duration_s,
        }
        digest = hashlib.sha256(json.dumps(determinants, sort_keys=True).encode()).hexdigest()[:12]
        return Path(f"{digest}-seed{self.seed}.jsonl")


def run_missing(
    runs: Sequence[AblationRun], folder: Path, *, workers: int = 1, on_done: Callable[[int, int], None] | None = None
):
    """Stream every run that is not in ``folder``, in ``workers`` processes of one thread each.

    on_done: called with the number of finished runs and of all runs, at first and after every run.
    A run is stored as soon as it is complete. Raises StreamingVLMError for the first failure.
    """
    by_path = {run.path: run for run in runs}
    missing = [(run, folder / path) for path, run in by_path.items() if not (folder / path).exists()]
    finished = _run_here(missing) if workers == 1 else _run_in_processes(missing, workers)
    for num_missing in range(len(missing), -1, -1):
        if on_done:
            on_done(len(by_path) - num_missing, len(by_path))
        next(finished, None)


def read_runs(runs: Sequence[AblationRun], folder: Path) -> list[PitchRun]:
    """Read the records of these runs, under the names of their rows. Raises DataError for a damaged record."""
    return [replace(read_run(folder / run.path), name=run.row.name) for run in runs]


@lru_cache
def fingerprint(checkpoint: str) -> str:
    """Return a digest of a checkpoint's files, which tells apart two trainings under the same name."""
    digest = hashlib.sha256()
    for path in sorted(find_checkpoint(checkpoint).iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _run_here(missing: Sequence[tuple[AblationRun, Path]]) -> Iterator[None]:
    with _one_thread():
        for run, path in missing:
            yield _run(run, path)


def _run_in_processes(missing: Sequence[tuple[AblationRun, Path]], workers: int) -> Iterator[None]:
    # A fork of a process with torch threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            for future in as_completed([pool.submit(_run, run, path) for run, path in missing]):
                yield future.result()
        except BrokenProcessPool as error:
            raise StreamingVLMError(
                "a worker was killed, perhaps out of memory; finished runs are stored; run it again with fewer workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker():
    torch.set_num_threads(1)
    # If the parent is killed, a worker would wait forever on its queue.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as a worker does, so that times are comparable for any number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(run: AblationRun, path: Path):
    session = StreamingSession(_loaded(**run.model), **run.settings)
    record = evaluate_pitch(
        session,
        seed=run.seed,
        duration_s=run.setup.duration_s,
        style=STYLES[run.setup.style],
        limits=run.setup.limits,
        black_frames=run.row.black_frames,
    )
    write_run(path, replace(record, name=run.row.name, commit=run.setup.commit))


@lru_cache(maxsize=1)
def _loaded(name: str, **weights: str | None) -> StreamingModel:
    return load_model(name, **weights)
