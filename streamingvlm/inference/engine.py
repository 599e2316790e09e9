"""Many streams, one forward pass: who is served when.

Streams come and go at any time. What they hand over is done in rounds, each of which sees what is due (vision), feeds a
bounded number of tokens (prefill) and lets every stream that speaks say one token more (decode), each in one pass for
all of them. So a stream that speaks never waits for more than one bounded prefill, a stream with much to feed holds up
nobody, and under overload the streams take turns: whoever has waited longest is next.

The engine plans; runner.py does the work, and a job (job.py) knows what a turn is.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.kv_cache import KVCache, KVPool, bytes_per_token
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, at_least
from streamingvlm.errors import ConfigError, StreamingVLMError
from streamingvlm.inference.job import Job
from streamingvlm.inference.runner import Runner
from streamingvlm.inference.slots import Slots
from streamingvlm.model.loading import StreamingModel

if TYPE_CHECKING:
    from streamingvlm.inference.session import StreamingSession

# Streams of an engine that is limited by memory alone.
_MOST_SLOTS = 256
# Room of a cache whose policy has no bound, before it first grows.
_FIRST_CAPACITY_TOKENS = 4096
# Turns seen in one pass: a bound on the memory of the vision tower, and on the wait of those who speak.
_MOST_VIDEOS = 8


class Engine:
    """Serves many streams with one model, each with windows, prompts, sampling and a frame rate of its own.

    num_slots: the most streams at once; alone, it allocates for as many like the first, and grows where others need it.
    memory_bytes: for the caches of all streams together, allocated at once; a stream that does not fit is refused.
    max_prefill_tokens: the most tokens fed in one round.
    cache_dtype: in which keys and values are kept, as ``CacheConfig.dtype`` says it.
    fixed_shapes: pad the token step to a few sizes, as CUDA graphs need it.

    Without a worker (``start``) the model runs in the thread of whoever waits for a turn. Raises ConfigError.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        num_slots: int | None = None,
        memory_bytes: int | None = None,
        max_prefill_tokens: int = 2048,
        fixed_shapes: bool = False,
        cache_dtype: str | None = None,
    ):
        if num_slots is None and memory_bytes is None:
            raise ConfigError("an engine has neither num_slots nor memory_bytes to tell how much it may take; give one")
        for name, value in (("num_slots", num_slots), ("memory_bytes", memory_bytes)):
            if value is not None:
                at_least(name, value, 1, "room for a stream")
        at_least("max_prefill_tokens", max_prefill_tokens, 1, "tokens a round")
        self.model = model
        self.num_slots = num_slots or _MOST_SLOTS
        self.max_prefill_tokens = max_prefill_tokens
        self._memory_bytes = memory_bytes
        self._fixed_shapes = fixed_shapes
        self.cache_dtype = cache_dtype
        self.runner: Runner | None = None
        self._slots = Slots(self.num_slots)
        self._waiting: list[Job] = []  # in the order of their coming
        self._feeding: list[Job] = []
        self._speaking: list[Job] = []
        self._work = threading.Condition()  # guards what is waiting
        self._turn = threading.RLock()  # held by the thread that runs the model
        self._runs_in: threading.Thread | None = None  # the thread that is in the middle of a round
        self._worker: threading.Thread | None = None
        self._is_closed = False

    # --- streams come and go

    def open(
        self,
        *,
        cache: CacheConfig | Mapping[str, Any] | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ) -> "StreamingSession":
        """Open a stream. Raises EngineFull where there is no room for it, ConfigError for wrong settings."""
        from streamingvlm.inference.session import StreamingSession

        return StreamingSession(
            self.model,
            cache=cache,
            video=video,
            sampling=sampling,
            query=query,
            previous_text=previous_text,
            on_token=on_token,
            engine=self,
        )

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return self._slots.num_taken

    def admit_(self, session: "StreamingSession", capacity_tokens: int | None) -> tuple[KVCache, int]:
        """Give a session its memory and its slot. Raises EngineFull."""
        capacity = capacity_tokens or _FIRST_CAPACITY_TOKENS
        with self._turn:
            self._check_open()
            self._slots.check_free()
            if self.runner is None:
                self.runner = self._new_runner(capacity)
            kv = self.runner.pool.open(capacity)
            return kv, self._slots.take(session, kv)

    def dismiss_(self, session: "StreamingSession"):
        """Let a session go; its jobs are cancelled."""
        with self.without(session):
            self._slots.leave(session.slot)

    @contextmanager
    def without(self, session: "StreamingSession") -> Iterator[None]:
        """Cancel what a session has in the engine, and leave it alone for the length of the block."""
        self._check_outside()
        with self._turn:
            with self._work:
                mine = [job for job in self._waiting if job.session is session]
            for job in mine + [job for job in self._feeding + self._speaking if job.session is session]:
                self._finish(job, CancelledError())
            yield

    def _new_runner(self, capacity: int) -> Runner:
        """Allocate: all the memory there is, or for as many streams as there are slots."""
        text_config, dtype = self.model.text_model.config, self.model.dtype
        num_tokens = capacity * self.num_slots
        if self._memory_bytes is not None:
            num_tokens = self._memory_bytes // bytes_per_token(text_config, dtype, self.cache_dtype)
        is_elastic = self._memory_bytes is None
        settings = {"cache_dtype": self.cache_dtype, "is_elastic": is_elastic}
        pool = KVPool.of(text_config, num_tokens, dtype, self.model.device, **settings)
        return Runner(self.model, pool, num_slots=self.num_slots, fixed_shapes=self._fixed_shapes)

    # --- what they hand over

    def submit(self, job: Job) -> Future:
        """Take a job on; the jobs of one stream are done one after the other."""
        with self._work:
            self._check_open()
            self._waiting.append(job)
            self._work.notify_all()
        return job.future

    def wait_for(self, job: Job) -> Any:
        """Wait until a job is done, and return its result or raise its error; without a worker, run the model here.

        Interrupted (Ctrl-C), the job ends with what was said so far.
        """
        self._check_outside()
        try:
            while self._worker is None and not job.future.done():
                self._run_round()
            return job.future.result()
        except BaseException:
            if not job.future.done():
                job.is_cut = True
            raise

    def run(self):
        """Do all that was handed over, in this thread."""
        self._check_outside()
        while self._has_work():
            self._run_round()

    def start(self) -> "Engine":
        """Run the model in a thread of the engine's own from now on."""
        with self._turn:
            self._check_open()
            if self._worker is None:
                self._worker = threading.Thread(target=self._run_worker, name="engine", daemon=True)
                self._worker.start()
        return self

    def close(self):
        """Stop the worker; what is not done yet is cancelled, and nothing more is taken on."""
        with self._work:
            self._is_closed = True
            self._work.notify_all()
        if self._worker is not None:
            self._worker.join()
        with self._turn:
            self._fail_all(CancelledError())

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *_exception):
        self.close()

    def _run_worker(self):
        while True:
            with self._work:
                self._work.wait_for(lambda: self._is_closed or self._has_work())
            if self._is_closed:
                return
            self._run_round()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._feeding or self._speaking)

    def _check_open(self):
        if self._is_closed:
            raise StreamingVLMError("the engine is closed; open another one")

    def _check_outside(self):
        if threading.current_thread() is self._runs_in:
            raise StreamingVLMError(
                "this is in the middle of a turn (in on_token?), where the engine cannot be waited for; use submit, or "
                "another thread"
            )

    # --- a round

    def _run_round(self):
        with self._turn, torch.inference_mode():
            self._runs_in = threading.current_thread()
            try:
                self._see(self._due())
                for job in self._due():
                    if job.frames is None or job.vision is not None:
                        self._open(job)
                self._prefill()
                self._decode()
            except BaseException as error:  # Ctrl-C: nothing may be left half done, or it would never be done
                self._fail_all(error)
                raise
            finally:
                self._runs_in = None

    def _due(self) -> list[Job]:
        """The next job of each stream that has none in hand, in the order of their coming."""
        busy = {job.session for job in self._feeding + self._speaking}
        due = []
        with self._work:
            for job in self._waiting:
                if job.session not in busy:
                    busy.add(job.session)
                    due.append(job)
        return due

    def _see(self, due: Sequence[Job]):
        jobs = [job for job in due if job.frames is not None and job.vision is None][:_MOST_VIDEOS]
        patches = []
        started = time.perf_counter()
        for job in list(jobs):
            with self._failing([job]):
                patches.append(job.encoder.patches(job.frames))
        jobs = [job for job in jobs if not job.future.done()]
        if not jobs:
            return
        with self._failing(jobs):
            for job, vision in zip(jobs, jobs[0].encoder.features_of_many(patches), strict=True):
                job.vision = vision
                job.session.stats.spent_("vision", time.perf_counter() - started)

    def _open(self, job: Job):
        with self._work:
            self._waiting.remove(job)
        if not job.future.set_running_or_notify_cancel():
            return
        self._feeding.append(job)
        with self._failing([job]):
            job.open_()
            job.opened_at = time.perf_counter()
            job.decoder.prepare_(job.max_new_tokens)

    def _prefill(self):
        """Feed what is waiting, the first come first, as much as a round may."""
        room, meals, jobs = self.max_prefill_tokens, [], []
        for job in self._feeding:
            if room > 0:
                runs = job.decoder.waiting(room)
                room -= sum(map(len, runs))
                meals.append((job.decoder, runs))
                jobs.append(job)
        if not jobs:
            return
        with self._failing(jobs):
            logits = self.runner.feed_(meals)
            fed = [place for place, job in enumerate(jobs) if not job.decoder.waiting(1)]
            self._begin([jobs[place] for place in fed], logits[fed] if len(fed) < len(jobs) else logits)

    def _begin(self, jobs: Sequence[Job], logits: torch.Tensor):
        """Choose the first token of each job that speaks; the others are done."""
        speaking = [place for place, job in enumerate(jobs) if job.max_new_tokens]
        tokens = iter(())
        if speaking:
            logits = logits[speaking] if len(speaking) < len(jobs) else logits
            tokens = iter(self.runner.begin_([jobs[place].sampler for place in speaking], logits))
        for job in jobs:
            self._feeding.remove(job)
            self._speaking.append(job)
            job.fed_at = time.perf_counter()
            job.session.stats.spent_("prefill", job.fed_at - job.opened_at)
            if job.max_new_tokens:
                self._take(job, next(tokens))
            else:
                self._finish(job)

    def _decode(self):
        """One token more of each stream that speaks."""
        jobs = list(self._speaking)
        if not jobs:
            return
        with self._failing(jobs):
            for job in jobs:
                job.decoder.say_(job.reply[-1])
            for job, token in zip(jobs, self.runner.speak_(jobs), strict=True):
                job.decoder.said_()
                self._take(job, token)

    def _take(self, job: Job, token: int):
        with self._failing([job]):
            job.take_(token)
            if job.is_done:
                job.session.stats.spent_("decode", time.perf_counter() - job.fed_at)
                self._finish(job)

    def _finish(self, job: Job, error: BaseException | None = None):
        """Close a job, whether it is done or has failed, and tell whoever waits for it."""
        for jobs in (self._feeding, self._speaking):
            if job in jobs:
                jobs.remove(job)
        with self._work:
            if job in self._waiting:
                self._waiting.remove(job)
        result = None
        if job.is_open:
            job.is_open = False
            try:
                result = job.close_()
            except Exception as failure:  # noqa: BLE001 - whoever waits for the job is told
                error = error or failure
        _tell(job.future, result, error)

    @contextmanager
    def _failing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Let an error in the block be that of ``jobs``: they end here, the other streams go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the same
            for job in jobs:
                if not job.future.done():
                    self._finish(job, error)

    def _fail_all(self, error: BaseException):
        with self._work:
            jobs = self._speaking + self._feeding + self._waiting
        for job in jobs:
            self._finish(job, error)


def _tell(future: Future, result: Any, error: BaseException | None):
    if isinstance(error, CancelledError) and future.cancel():
        return
    if future.cancelled() or future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
