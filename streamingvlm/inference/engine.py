"""An engine serves many streams with one model.

Each round encodes frames that are due, prefills at most ``max_prefill_tokens`` in total, and decodes one token of every
decoding stream; all three are batched across streams. A decoding stream therefore never waits for more than one bounded
prefill. Waiting streams are served in order of arrival.

    scheduler.py    scheduling          executor.py         one round
    requests.py     request types       model_runner.py     forward passes
    slots.py        stream slots        vision_runner.py    the vision tower
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from streamingvlm.cache.kv_cache import KVPool, bytes_per_token
from streamingvlm.config import at_least
from streamingvlm.errors import ClosedError, ConfigError, StreamingVLMError
from streamingvlm.inference.executor import Executor
from streamingvlm.inference.fair_lock import FairLock
from streamingvlm.inference.model_runner import ModelRunner, OnProgress, can_capture
from streamingvlm.inference.requests import Request, RunBetweenTurns
from streamingvlm.inference.sampling import Sampler, SampleTokens
from streamingvlm.inference.scheduler import Scheduler
from streamingvlm.inference.sequence import TokenSequence
from streamingvlm.inference.sizing import stream_tokens
from streamingvlm.inference.slots import Slots
from streamingvlm.inference.stream import Stream
from streamingvlm.inference.stream_config import StreamConfig
from streamingvlm.inference.vision_runner import AsyncVisionRunner, VisionRunner
from streamingvlm.model.loading import StreamingModel, check_is_loaded

log = logging.getLogger(__name__)

# Default of num_slots if only memory_bytes is given.
_MAX_SLOTS = 256
# Initial capacity of an unbounded cache.
_INITIAL_CAPACITY_TOKENS = 4096


class Engine:
    """Serves many streams with one model, each with its own windows, prompts, sampling and frame rate.

    num_slots: maximum number of streams; 256 if only memory_bytes is given. Without memory_bytes, the key/value pool
        is sized for num_slots streams as large as the first, and grows on demand.
    memory_bytes: size of the key/value pool. It is allocated when the first stream is added; a stream that does not fit
        raises EngineFull.
    max_prefill_tokens: maximum number of tokens prefilled in one round.
    cache_dtype: how keys and values are stored, as in ``CacheConfig.dtype``.
    graphs: capture CUDA graphs of the decode step when streams are added; by default, if the model supports it.
    static_decode: pad decode batches to a few fixed sizes, as graphs do, without capturing graphs.
    async_vision: encode the next turn's frames in a background thread; by default on CUDA.
    on_progress: called with (done, total) while graphs are captured.
    sample: sampling function, `sampling.sample_tokens` by default.

    Unless ``start`` was called, the thread that waits for a request runs the model. Raises ConfigError.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        num_slots: int | None = None,
        memory_bytes: int | None = None,
        max_prefill_tokens: int = 2048,
        graphs: bool | None = None,
        static_decode: bool = False,
        cache_dtype: str | None = None,
        async_vision: bool | None = None,
        on_progress: OnProgress | None = None,
        sample: SampleTokens | None = None,
    ):
        check_is_loaded(model, "Engine(load_model({!r}), ...)")
        _check_settings(model, num_slots, memory_bytes, max_prefill_tokens, graphs)
        self.model = model
        self.num_slots = num_slots or _MAX_SLOTS
        self.cache_dtype = cache_dtype
        self.runner: ModelRunner | None = None  # created for the first stream, whose capacity sizes the pool
        self._memory_bytes = memory_bytes
        graphs = can_capture(model) if graphs is None else graphs
        self._new_runner_on = partial(
            ModelRunner, model, num_slots=self.num_slots, graphs=graphs, static_decode=static_decode, sample=sample
        )
        self._on_progress = on_progress
        self._slots = Slots(self.num_slots)
        self._scheduler = Scheduler(max_prefill_tokens)
        self._executor: Executor | None = None
        self._model_lock = FairLock()  # held by the thread that runs the model
        self._running_thread: threading.Thread | None = None  # the thread in the middle of a round
        self._worker: threading.Thread | None = None
        self.async_vision = model.device.type == "cuda" if async_vision is None else async_vision
        self._vision = AsyncVisionRunner(model.device, self._scheduler.notify) if self.async_vision else VisionRunner()
        self._is_closed = False

    # --- streams

    @property
    def is_running(self) -> bool:
        """Whether the worker is alive and accepts requests."""
        return self._worker is not None and self._worker.is_alive() and not self._is_closed

    @property
    def num_streams(self) -> int:
        """Number of open streams."""
        return self._slots.num_taken

    @property
    def num_waiting(self) -> int:
        """Number of requests that have not started."""
        return self._scheduler.num_waiting

    def add_stream(
        self,
        config: StreamConfig,
        *,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ) -> Stream:
        """Add a stream, and capture the decode graphs for the new number of streams.

        config: its cache dtype must be None or the engine's. query, previous_text, on_token: as in StreamingSession.
        Raises EngineFull if there is no slot or no memory, and ConfigError.
        """
        if config.cache.dtype not in (None, self.cache_dtype):
            raise ConfigError(
                f"cache.dtype={config.cache.dtype} is not that of the engine ({self.cache_dtype}); give the same "
                "cache_dtype to the engine"
            )
        config = config.with_cache_dtype(self.cache_dtype)
        num_tokens = stream_tokens(config, query, previous_text) or _INITIAL_CAPACITY_TOKENS
        with self._model_lock:
            self._check_open()
            slot = self._slots.first_free()
            if self.runner is None:
                self.runner = self._new_runner(num_tokens)
                self._executor = Executor(self._scheduler, self.runner)
            kv = self.runner.pool.open(num_tokens)
            try:
                sequence = TokenSequence(config.cache, kv, self.model.rotation)
                sampler = Sampler(config.sampling, self.runner.penalty_mask, slot)
                stream = Stream(config, sequence, sampler, query=query, previous_text=previous_text, on_token=on_token)
            except BaseException:
                kv.close()
                raise
            self._slots.take(stream)
            with torch.inference_mode():
                self.runner.capture_graphs(self.num_streams, sampler, self._on_progress)
        return stream

    def remove_stream(self, stream: Stream):
        """Cancel the stream's requests and free its slot. Later submits raise ClosedError."""
        with self._scheduler.condition:
            if stream.is_closed:  # its slot may be another stream's by now
                return
            stream.is_closed = True
        with self.exclusive(stream):
            self._slots.release(stream)

    @contextmanager
    def exclusive(self, stream: Stream) -> Iterator[None]:
        """Cancel the stream's requests and hold the model lock: no stream runs during the block."""
        self._check_not_in_round()
        with self._model_lock:
            self._finish(self._scheduler.of_stream(stream), CancelledError())
            yield

    def abort(self, stream: Stream):
        """Cancel the stream's requests: their futures raise CancelledError. Generated text stays in the cache."""
        with self.exclusive(stream):
            pass

    def run_between_turns(self, stream: Stream, function: Callable[[Stream], Any]) -> Any:
        """Call ``function(stream)`` between two turns, and return its result. From any thread, not from a callback."""
        return self.submit_and_wait(RunBetweenTurns(stream, function))

    def _new_runner(self, capacity: int) -> ModelRunner:
        """Create the runner and its pool, of memory_bytes if given, else of ``capacity`` tokens for every slot."""
        text_config, dtype = self.model.text_model.config, self.model.dtype
        num_tokens = capacity * self.num_slots
        if self._memory_bytes is not None:
            num_tokens = self._memory_bytes // bytes_per_token(text_config, dtype, self.cache_dtype)
        settings = {"cache_dtype": self.cache_dtype, "is_elastic": self._memory_bytes is None}
        pool = KVPool.of(text_config, num_tokens, dtype, self.model.device, **settings)
        return self._new_runner_on(pool)

    # --- requests

    def submit(self, request: Request) -> Future:
        """Append a request to its stream's queue, and return its future. Raises ClosedError."""
        with self._scheduler.condition:
            self._check_open()
            if request.stream.is_closed:
                raise ClosedError("the stream is closed; open another one")
            self._scheduler.add(request)
        self._vision.prefetch(*self._scheduler.next_requests())
        return request.future

    def submit_and_wait(self, request: Request) -> Any:
        """Submit a request and wait for it. Raises StreamingVLMError if a callback of a round calls it."""
        self._check_not_in_round()
        self.submit(request)
        return self.wait(request)

    def wait(self, request: Request) -> Any:
        """Return a request's result or raise its error; without a worker, run rounds in this thread until it is done.

        An interrupt (Ctrl-C) outside a round cancels a waiting request, and stops a running one after its next token.
        Inside a round that this thread runs, it fails the requests of all streams.
        """
        self._check_not_in_round()
        try:
            while self._worker is None and not request.future.done():
                self.step(request.future)
            return request.future.result()
        except BaseException:
            if not request.future.cancel():  # it is running
                request.abort_requested = True
            raise

    def run_until_idle(self):
        """Run rounds in this thread until no request is left."""
        self._check_not_in_round()
        while self._scheduler.requests:
            self.step()

    def start(self) -> "Engine":
        """Run the model in the engine's own thread from now on."""
        with self._model_lock:
            self._check_open()
            if self._worker is None:
                self._worker = threading.Thread(target=self._run_worker, name="engine", daemon=True)
                self._worker.start()
        return self

    def close(self):
        """Stop the worker, cancel all requests, and accept no more."""
        with self._scheduler.condition:
            self._is_closed = True
            self._scheduler.notify()
        if self._worker is not None:
            self._worker.join()
        with self._model_lock:
            self._finish(self._scheduler.requests, CancelledError())
        self._scheduler.notify()
        self._vision.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self.num_waiting} requests waiting"
        return f"Engine({self.model.name}, {self.num_streams} of {self.num_slots} streams, {state})"

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *_exception):
        self.close()

    def _run_worker(self):
        scheduler = self._scheduler
        while True:
            with scheduler.condition:
                scheduler.condition.wait_for(lambda: self._is_closed or scheduler.requests)
            if self._is_closed:
                return
            try:
                self.step()
            except Exception:  # step() has set this error on all futures; later requests must still be served
                log.exception("a round of the engine failed")

    def _check_open(self):
        if self._is_closed:
            raise ClosedError("the engine is closed; open another one")

    def _check_not_in_round(self):
        if threading.current_thread() is self._running_thread:
            raise StreamingVLMError(
                "a callback in the middle of a turn (on_token, on_turn_end) cannot wait for the engine; use submit, or "
                "another thread"
            )

    # --- a round

    def step(self, awaited: Future | None = None):
        """Run one round as soon as there is work; return early if another thread completes ``awaited``."""
        scheduler = self._scheduler

        def is_awaited_done():
            return awaited is not None and awaited.done()

        with scheduler.condition:
            scheduler.condition.wait_for(lambda: self._should_wake() or is_awaited_done() or not scheduler.requests)
        with self._model_lock, torch.inference_mode():
            if is_awaited_done():
                return
            self._running_thread = threading.current_thread()
            try:
                self._run_round()
            except BaseException as error:  # KeyboardInterrupt, too: an unresolved future blocks its waiting thread
                self._finish(scheduler.requests, error)
                raise
            finally:
                self._running_thread = None
                scheduler.notify()

    def _run_round(self):
        due, upcoming = self._scheduler.next_requests()
        self._vision.encode(due, upcoming)
        for request in due:
            if not request.needs_vision and self._scheduler.admit(request):
                self._vision.synchronize(request)
                self._executor.begin(request)
        self._vision.prefetch(*self._scheduler.next_requests())
        self._executor.run_round()

    def _should_wake(self) -> bool:
        due, _ = self._scheduler.next_requests()
        return self._is_closed or self._scheduler.has_running or any(map(self._vision.is_ready, due))

    def _finish(self, requests: Sequence[Request], error: BaseException):
        """Remove requests from the scheduler and fail or cancel them."""
        self._scheduler.remove(requests)
        for request in requests:
            request.finish(error)


def _check_settings(
    model: StreamingModel,
    num_slots: int | None,
    memory_bytes: int | None,
    max_prefill_tokens: int,
    graphs: bool | None,
):
    if num_slots is None and memory_bytes is None:
        raise ConfigError("an engine needs num_slots or memory_bytes as its limit; give one")
    for name, value in (("num_slots", num_slots), ("memory_bytes", memory_bytes)):
        if value is not None:
            at_least(name, value, 1, "room for a stream")
    at_least("max_prefill_tokens", max_prefill_tokens, 1, "tokens a round")
    if graphs and not can_capture(model):
        dtype = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"graphs=true with a model in {dtype} on {model.device.type}, but CUDA graphs need CUDA and half "
            "precision; omit graphs"
        )
