"""What the streams see, encoded: when it is due, or ahead of that, while the language model is at other work."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from streamingvlm.inference.job import Job
from streamingvlm.model.vision import VisionFeatures

# Turns seen in one pass: a bound on the memory of the vision tower, and on the wait of those who speak.
_MOST_VIDEOS = 8
# A pass of fewer takes turns along that are not due yet: of a small model on a CPU it costs 5 ms and 3 a turn.
_FEW_VIDEOS = 4


def encode(jobs: Sequence[Job]) -> dict[Job, VisionFeatures]:
    """Encode the frames of some jobs in one pass through the tower; a job whose frames cannot be, is told why."""
    patches = {}
    for job in jobs:
        try:
            patches[job] = job.encoder.patches(job.frames, detail=job.detail)
        except Exception as error:  # noqa: BLE001 - whoever waits for the job is told
            job.failure = error
    if not patches:
        return {}
    try:
        return dict(zip(patches, jobs[0].encoder.features_of_many(list(patches.values())), strict=True))
    except Exception as error:  # noqa: BLE001 - the same
        for job in patches:
            job.failure = error
        return {}


def give_(features: dict[Job, VisionFeatures], spent_s: float):
    """Give each job what it sees."""
    for job, vision in features.items():
        job.spent_("vision", spent_s)
        job.vision = vision


class Sight:
    """Encodes what is due in the thread that asks for it."""

    def look_at_(self, due: Sequence[Job], coming: Sequence[Job]):
        """Encode a bounded number of the turns that are due, the first ones first; if they are few, what comes, too."""
        unseen = [job for job in due if job.is_unseen][:_MOST_VIDEOS]
        if not unseen:
            return
        unseen += [job for job in coming if job.is_unseen][: max(0, _FEW_VIDEOS - len(unseen))]
        started = time.perf_counter()
        features = encode(unseen)
        give_(features, time.perf_counter() - started)

    def look_ahead_(self, due: Sequence[Job], coming: Sequence[Job]):
        """Look already now at what was handed over, in another thread than this."""

    def is_ready(self, _job: Job) -> bool:
        """Whether a round can go on with a job that is due."""
        return True

    def hand_over(self, job: Job):
        """Make what a job sees safe to use in this thread."""

    def close(self):
        """Stop; nothing more is seen."""


class SightAhead(Sight):
    """Encodes in a thread of its own, and on CUDA in a stream of its own, what is due and what comes after it.

    changed: called from that thread when something has been seen.
    """

    def __init__(self, device: torch.device, changed: Callable[[], None]):
        self._changed = changed
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Unlike a thread that waits for work, an idle executor holds on to nothing: an engine can be forgotten.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sight")
        self._wanted: list[Job] = []
        self._in_sight: list[Job] = []
        self._seen_at: dict[Job, torch.cuda.Event] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def look_at_(self, due: Sequence[Job], coming: Sequence[Job]):
        """Want these turns seen, what is due first; returns at once."""
        with self._lock:
            self._wanted = [job for job in (*due, *coming) if job.is_unseen and job not in self._in_sight]
            is_idle = not self._in_sight
            if self._wanted and is_idle and not self._is_closed:
                self._take_next()
                self._thread.submit(self._look)

    look_ahead_ = look_at_

    def is_ready(self, job: Job) -> bool:
        """Whether it has been seen."""
        return not job.is_unseen

    def hand_over(self, job: Job):
        """Let the current CUDA stream wait for the tower's, and hold on to what comes from it."""
        if seen_at := self._seen_at.pop(job, None):
            here = torch.cuda.current_stream()
            here.wait_event(seen_at)
            for level in (job.vision.embeddings, *job.vision.deepstack):
                level.record_stream(here)

    def close(self):
        """See no more, and wait for what is being looked at."""
        with self._lock:
            self._wanted, self._is_closed = [], True
        self._thread.shutdown()

    def _take_next(self):
        self._in_sight, self._wanted = self._wanted[:_MOST_VIDEOS], self._wanted[_MOST_VIDEOS:]

    def _look(self):
        while self._in_sight:
            started = time.perf_counter()
            with torch.inference_mode(), torch.cuda.stream(self._stream):  # None is the current one
                features = encode(self._in_sight)
                if self._stream is not None:
                    self._seen_at.update(dict.fromkeys(features, self._stream.record_event()))
            give_(features, time.perf_counter() - started)
            with self._lock:
                self._take_next()
            self._changed()
