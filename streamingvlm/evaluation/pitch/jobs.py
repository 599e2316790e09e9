"""The runs that tables are made from: each is watched once, kept as a file, and found there the next time.

A run is known by all that decides what is said in it (weights, settings, seed, length), not by the table that asks for
it: what two tables share is watched once, and a table that was interrupted goes on with the run that is missing.
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
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.evaluation.pitch.run import PitchRun, read_run, write_run
from streamingvlm.evaluation.pitch.tables import Row
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.checkpoint import find_checkpoint, read_config_json
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.model.stream_settings import read_stream_settings
from streamingvlm.pitch.styles import STYLES


@dataclass(frozen=True)
class Setup:
    """What the runs of a table share.

    model: name, device, dtype and quantization, as ``load_model`` takes them; cache, video, sampling: settings of the
    session, None for the checkpoint's own; commit: of the code, for the record.
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
        """The settings of a session on a checkpoint (None: the setup's), nothing loaded but its config."""
        folder = find_checkpoint(checkpoint or self.model["name"])
        trained = read_stream_settings(read_config_json(folder), folder)
        kinds = {"cache": CacheConfig, "video": VideoConfig, "sampling": SamplingConfig}
        return {name: resolve(kind, getattr(self, name), trained) for name, kind in kinds.items()}


@dataclass(frozen=True)
class Job:
    """One run: a row of a table, on the match of a seed.

    settings: those of the session, the row's own among them. Raises ConfigError for a row that they do not allow.
    """

    row: Row
    seed: int
    setup: Setup
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self):
        settings = self.setup.session_settings(self.row.checkpoint)
        cache = replace(settings["cache"], **self.row.cache)
        object.__setattr__(self, "settings", settings | {"cache": cache})  # frozen for all but itself

    @property
    def model(self) -> dict[str, Any]:
        """What ``load_model`` is given."""
        return dict(self.setup.model) | ({"name": self.row.checkpoint} if self.row.checkpoint else {})

    @property
    def path(self) -> Path:
        """The file of its record, in a folder of runs: the same for every job that would say the same."""
        decides = {
            "model": {**self.model, "name": fingerprint(self.model["name"])},
            "settings": {name: asdict(config) for name, config in self.settings.items()},
            "limits": asdict(self.setup.limits),
            "blindfold": self.row.blindfold,
            "style": self.setup.style,
            "duration_s": self.setup.duration_s,
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        return Path(f"{digest}-seed{self.seed}.jsonl")


def watch_missing(
    jobs: Sequence[Job], folder: Path, *, workers: int = 1, on_done: Callable[[int, int], None] | None = None
):
    """Watch every run that is not yet in ``folder``, in so many processes of one thread each.

    on_done: called with the number of runs that are there and the number of all, at first and after every one.
    A run is kept as soon as it is complete. Raises StreamingVLMError for the first that failed.
    """
    by_path = {job.path: job for job in jobs}
    missing = [(job, folder / path) for path, job in by_path.items() if not (folder / path).exists()]
    finished = _watch_here(missing) if workers == 1 else _watch_in_processes(missing, workers)
    for num_missing in range(len(missing), -1, -1):
        if on_done:
            on_done(len(by_path) - num_missing, len(by_path))
        next(finished, None)


def read_runs(jobs: Sequence[Job], folder: Path) -> list[PitchRun]:
    """The runs of these jobs, under the names of their rows. Raises DataError for a file that is no record."""
    return [replace(read_run(folder / job.path), name=job.row.name) for job in jobs]


@lru_cache
def fingerprint(checkpoint: str) -> str:
    """A digest of a checkpoint's files: weights that were trained anew under the same name are other weights."""
    digest = hashlib.sha256()
    for path in sorted(find_checkpoint(checkpoint).iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _watch_here(missing: Sequence[tuple[Job, Path]]) -> Iterator[None]:
    with _one_thread():
        for job, path in missing:
            yield _watch(job, path)


def _watch_in_processes(missing: Sequence[tuple[Job, Path]], workers: int) -> Iterator[None]:
    # A process that is forked after torch has started its threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            for future in as_completed([pool.submit(_watch, job, path) for job, path in missing]):
                yield future.result()
        except BrokenProcessPool as error:
            raise StreamingVLMError(
                "a worker was killed, perhaps for its memory; what is complete is kept: run it again with fewer workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker():
    torch.set_num_threads(1)
    # A worker waits for ever on a queue that nobody fills any more where its parent was killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker, so that times can be compared whatever the number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _watch(job: Job, path: Path):
    session = StreamingSession(_loaded(**job.model), **job.settings)
    run = evaluate_pitch(
        session,
        seed=job.seed,
        duration_s=job.setup.duration_s,
        style=STYLES[job.setup.style],
        limits=job.setup.limits,
        blindfold=job.row.blindfold,
    )
    write_run(path, replace(run, name=job.row.name, commit=job.setup.commit))


@lru_cache(maxsize=1)
def _loaded(name: str, **weights: str | None) -> StreamingModel:
    return load_model(name, **weights)
