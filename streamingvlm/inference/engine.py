"""Many streams, one forward pass: who is served when.

Streams come and go at any time. What they hand over is done in rounds, each of which sees what is due (vision), feeds a
bounded number of tokens (prefill) and lets every stream that speaks say one token more (decode). It is one pass for all
that is seen and one for all that is fed, or two where those who speak have CUDA graphs. So a stream that speaks never
waits for more than one bounded prefill, a stream with much to feed holds up nobody, and under overload the streams take
turns: whoever has waited longest is next.

The engine plans; runner.py does the work, and a job (job.py) knows what a turn is.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamingvlm.cache.kv_cache import KVCache, KVPool, bytes_per_token
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, at_least
from streamingvlm.errors import ClosedError, ConfigError, StreamingVLMError
from streamingvlm.inference.fair_lock import FairLock
from streamingvlm.inference.in_hand import JobsInHand
from streamingvlm.inference.job import Job
from streamingvlm.inference.runner import Progress, Runner, can_capture
from streamingvlm.inference.sight import Sight, SightAhead
from streamingvlm.inference.slots import Slots
from streamingvlm.model.loading import StreamingModel

if TYPE_CHECKING:
    from streamingvlm.inference.session import StreamingSession

log = logging.getLogger(__name__)

# Streams of an engine that is limited by memory alone.
_MOST_SLOTS = 256
# Room of a cache whose policy has no bound, before it first grows.
_FIRST_CAPACITY_TOKENS = 4096


class Engine:
    """Serves many streams with one model, each with windows, prompts, sampling and a frame rate of its own.

    num_slots: the most streams at once; alone, it allocates for as many like the first, and grows where others need it.
    memory_bytes: for the caches of all streams together, allocated at once; a stream that does not fit is refused.
    max_prefill_tokens: the most tokens fed in one round.
    cache_dtype: in which keys and values are kept, as ``CacheConfig.dtype`` says it.
    graphs: capture the token step as CUDA graphs, as streams are opened; by default where the model allows it.
    fixed_shapes: pad the token step to a few numbers of streams, which graphs need, without them, too.
    looks_ahead: encode video in a thread of its own, the next turn of a stream while this one is spoken; by default on
    CUDA.
    on_progress: called with (done, total) as graphs are captured.

    Without a worker (``start``) the model runs in the thread of whoever waits for a turn. Raises ConfigError.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        num_slots: int | None = None,
        memory_bytes: int | None = None,
        max_prefill_tokens: int = 2048,
        graphs: bool | None = None,
        fixed_shapes: bool = False,
        cache_dtype: str | None = None,
        looks_ahead: bool | None = None,
        on_progress: Progress | None = None,
    ):
        if num_slots is None and memory_bytes is None:
            raise ConfigError("an engine has neither num_slots nor memory_bytes to tell how much it may take; give one")
        for name, value in (("num_slots", num_slots), ("memory_bytes", memory_bytes)):
            if value is not None:
                at_least(name, value, 1, "room for a stream")
        at_least("max_prefill_tokens", max_prefill_tokens, 1, "tokens a round")
        if graphs and not can_capture(model):
            raise ConfigError(
                f"graphs=true with a model in {str(model.dtype).removeprefix('torch.')} on {model.device.type}, but "
                "CUDA graphs need CUDA and half precision; leave graphs out"
            )
        self.model = model
        self.num_slots = num_slots or _MOST_SLOTS
        self._memory_bytes = memory_bytes
        self._graphs = can_capture(model) if graphs is None else graphs
        self._fixed_shapes = fixed_shapes
        self._on_progress = on_progress
        self.cache_dtype = cache_dtype
        self.runner: Runner | None = None
        self._slots = Slots(self.num_slots)
        self._waiting: list[Job] = []  # in the order of their coming
        self._in_hand = JobsInHand(max_prefill_tokens)
        self._work = threading.Condition()  # guards what is waiting
        self._turn = FairLock()  # held by the thread that runs the model
        self._runs_in: threading.Thread | None = None  # the thread that is in the middle of a round
        self._worker: threading.Thread | None = None
        self.looks_ahead = model.device.type == "cuda" if looks_ahead is None else looks_ahead
        self._sight = SightAhead(model.device, self._wake) if self.looks_ahead else Sight()
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
        autosave: str | Path | None = None,
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
            autosave=autosave,
            engine=self,
        )

    @property
    def is_running(self) -> bool:
        """Whether there is a worker, and it takes jobs on."""
        return self._worker is not None and self._worker.is_alive() and not self._is_closed

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

    @torch.inference_mode()
    def warm_(self, session: "StreamingSession"):
        """Capture the graphs that one more stream needs, so that its first second is as fast as the others."""
        with self._turn:
            self.runner.warm_(self.num_streams, session.sampler, self._on_progress)

    def dismiss_(self, session: "StreamingSession"):
        """Let a session go; its jobs are cancelled, and it hands over no more."""
        with self._work:
            if session.is_closed:  # its slot may be another's by now
                return
            session.is_closed = True
        with self.without(session):
            self._slots.leave(session.slot)

    @contextmanager
    def without(self, session: "StreamingSession") -> Iterator[None]:
        """Cancel what a session has in the engine, and leave it alone for the length of the block."""
        self._check_outside()
        with self._turn:
            self._end([job for job in self._jobs if job.session is session], CancelledError())
            yield

    def withdraw(self, session: "StreamingSession"):
        """Cancel what a session has in the engine; a turn that was opened ends with what was said."""
        with self.without(session):
            pass

    def _new_runner(self, capacity: int) -> Runner:
        """Allocate: all the memory there is, or for as many streams as there are slots."""
        text_config, dtype = self.model.text_model.config, self.model.dtype
        num_tokens = capacity * self.num_slots
        if self._memory_bytes is not None:
            num_tokens = self._memory_bytes // bytes_per_token(text_config, dtype, self.cache_dtype)
        is_elastic = self._memory_bytes is None
        settings = {"cache_dtype": self.cache_dtype, "is_elastic": is_elastic}
        pool = KVPool.of(text_config, num_tokens, dtype, self.model.device, **settings)
        return Runner(self.model, pool, num_slots=self.num_slots, fixed_shapes=self._fixed_shapes, graphs=self._graphs)

    # --- what they hand over

    def submit(self, job: Job) -> Future:
        """Take a job on; the jobs of one stream are done one after the other. Raises ClosedError."""
        with self._work:
            self._check_open()
            if job.session.is_closed:
                raise ClosedError("the stream is closed; open another one")
            self._waiting.append(job)
            self._work.notify_all()
        self._sight.look_ahead_(*self._next_jobs())
        return job.future

    def do(self, job: Job) -> Any:
        """Take a job on and wait for it, as ``wait_for`` does; in the middle of a turn it is not even taken on."""
        self._check_outside()
        self.submit(job)
        return self.wait_for(job)

    def wait_for(self, job: Job) -> Any:
        """Wait until a job is done, and return its result or raise its error; without a worker, run the model here.

        Interrupted (Ctrl-C), the job ends with what was said so far.
        """
        self._check_outside()
        try:
            while self._worker is None and not job.future.done():
                self._run_round(job.future)
            return job.future.result()
        except BaseException:
            if not job.future.cancel():  # too late for a turn that was opened: it ends with its next token
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
            self._end(self._jobs, CancelledError())
        self._wake()
        self._sight.close()

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
            try:
                self._run_round()
            except Exception:  # whoever waited for it was told; those who come later shall not wait in vain
                log.exception("a round of the engine failed")

    def _has_work(self) -> bool:
        return bool(self._jobs)

    @property
    def _jobs(self) -> list[Job]:
        with self._work:
            return self._in_hand.jobs + self._waiting

    def _check_open(self):
        if self._is_closed:
            raise ClosedError("the engine is closed; open another one")

    def _check_outside(self):
        if threading.current_thread() is self._runs_in:
            raise StreamingVLMError(
                "this is in the middle of a turn (in on_token?), where the engine cannot be waited for; use submit, or "
                "another thread"
            )

    # --- a round

    def _run_round(self, awaited: Future | None = None):
        """Do a round, once there is something to do; none if meanwhile what is ``awaited`` was done elsewhere."""

        def is_awaited_done():
            return awaited is not None and awaited.done()

        with self._work:
            self._work.wait_for(lambda: self._can_go_on() or is_awaited_done() or not self._has_work())
        with self._turn, torch.inference_mode():
            if is_awaited_done():
                return
            self._runs_in = threading.current_thread()
            try:
                due, coming = self._next_jobs()
                self._sight.look_at_(due, coming)
                for job in due:
                    if not job.is_unseen:
                        self._open(job)
                self._sight.look_ahead_(*self._next_jobs())
                self._in_hand.advance_(self.runner)
            except BaseException as error:  # Ctrl-C: nothing may be left half done, or it would never be done
                self._end(self._jobs, error)
                raise
            finally:
                self._runs_in = None
                self._wake()

    def _wake(self):
        with self._work:
            self._work.notify_all()

    def _can_go_on(self) -> bool:
        return self._is_closed or bool(self._in_hand.jobs) or any(map(self._sight.is_ready, self._next_jobs()[0]))

    def _next_jobs(self) -> tuple[list[Job], list[Job]]:
        """The next job of each stream, in the order of their coming: where none is in hand, and where one is."""
        busy = {job.session for job in self._in_hand.jobs}
        seen, due, coming = set(), [], []
        with self._work:
            for job in self._waiting:
                if job.session not in seen:
                    seen.add(job.session)
                    (coming if job.session in busy else due).append(job)
        return due, coming

    def _open(self, job: Job):
        with self._work:
            self._waiting.remove(job)
        if job.future.set_running_or_notify_cancel():
            self._in_hand.open_(job, self._sight)

    def _end(self, jobs: Sequence[Job], error: BaseException):
        """End jobs that are waiting or in hand."""
        with self._work:
            self._waiting = [job for job in self._waiting if job not in jobs]
        for job in jobs:
            self._in_hand.end_(job, error)
