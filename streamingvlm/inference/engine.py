"""An engine serves many streams with one model.

It works in rounds: encode the frames that are due, begin their requests, then prefill a bounded number of tokens and
decode one token of every stream, each batched across streams. So a decoding stream never waits for more than one
bounded prefill, and under overload the stream that has waited longest is next.

    scheduler.py    what runs next          executor.py         runs it, request by request
    requests.py     what a turn is          model_runner.py     the forward passes
    slots.py        who has memory          vision_runner.py    the vision tower
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

import torch

from streamingvlm.cache.kv_cache import KVPool, bytes_per_token
from streamingvlm.config import at_least
from streamingvlm.errors import ClosedError, ConfigError, StreamingVLMError
from streamingvlm.inference.executor import Executor
from streamingvlm.inference.fair_lock import FairLock
from streamingvlm.inference.model_runner import ModelRunner, OnProgress, can_capture
from streamingvlm.inference.requests import QUESTION_ROOM_TOKENS, Request, RunBetweenTurns
from streamingvlm.inference.sampling import Sampler, SampleTokens
from streamingvlm.inference.scheduler import Scheduler
from streamingvlm.inference.sequence import TokenSequence
from streamingvlm.inference.slots import Slots
from streamingvlm.inference.stream import Stream
from streamingvlm.inference.stream_config import StreamConfig
from streamingvlm.inference.vision_runner import AsyncVisionRunner, VisionRunner
from streamingvlm.model.loading import StreamingModel

log = logging.getLogger(__name__)

# Streams of an engine that is limited by memory alone.
_MAX_SLOTS = 256
# Capacity of a cache without a bound, before it first grows.
_INITIAL_CAPACITY_TOKENS = 4096


class Engine:
    """Serves many streams with one model, each with its own windows, prompts, sampling and frame rate.

    num_slots: the most streams at once. Without memory_bytes it allocates for as many like the first, and grows.
    memory_bytes: for the caches of all streams, allocated at once; a stream that does not fit is refused.
    max_prefill_tokens: the most tokens that are prefilled in one round.
    cache_dtype: how keys and values are stored, as in ``CacheConfig.dtype``.
    graphs: capture the decode step as CUDA graphs when streams are added; by default if the model allows it.
    static_decode: pad the decode step to a few numbers of streams, as graphs need it, also without graphs.
    async_vision: encode video in another thread, a turn ahead; by default on CUDA.
    on_progress: called with (done, total) while graphs are captured.
    sample: chooses the tokens, with the signature of `sampling.sample_tokens`, which is the default.

    Without a worker (`start`), the model runs in the thread that waits for a request. Raises ConfigError.
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
        _check_settings(model, num_slots, memory_bytes, max_prefill_tokens, graphs)
        self.model = model
        self.num_slots = num_slots or _MAX_SLOTS
        self.cache_dtype = cache_dtype
        self.runner: ModelRunner | None = None  # made for the first stream, whose size decides the pool's
        self._memory_bytes = memory_bytes
        graphs = can_capture(model) if graphs is None else graphs
        self._runner_settings = {"graphs": graphs, "static_decode": static_decode, "sample": sample}
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
        """Open streams."""
        return self._slots.num_taken

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return self._scheduler.num_waiting

    def add_stream(
        self,
        config: StreamConfig,
        *,
        query: str = "",
        previous_text: str = "",
        on_token: Callable[[str], None] | None = None,
    ) -> Stream:
        """Add a stream and capture the graphs that it needs. Raises EngineFull if there is no room, and ConfigError.

        config: its cache dtype is the engine's, or not given.
        """
        if config.cache.dtype not in (None, self.cache_dtype):
            raise ConfigError(
                f"cache.dtype={config.cache.dtype} is not that of the engine ({self.cache_dtype}); give the engine "
                "cache_dtype, too"
            )
        config = config.with_cache_dtype(self.cache_dtype)
        capacity = config.capacity_tokens(query, previous_text)
        num_tokens = capacity + QUESTION_ROOM_TOKENS if capacity else _INITIAL_CAPACITY_TOKENS
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
        """Remove a stream: its requests are cancelled, and it accepts no more."""
        with self._scheduler.changed:
            if stream.is_closed:  # its slot may be another stream's by now
                return
            stream.is_closed = True
        with self.paused(stream):
            self._slots.release(stream)

    @contextmanager
    def paused(self, stream: Stream) -> Iterator[None]:
        """Cancel a stream's requests, and run no round during the block."""
        self._check_not_in_round()
        with self._model_lock:
            self._finish(self._scheduler.of_stream(stream), CancelledError())
            yield

    def abort(self, stream: Stream):
        """Cancel a stream's requests; a turn that has begun ends with what was generated."""
        with self.paused(stream):
            pass

    def run_between_turns(self, stream: Stream, function: Callable[[Stream], Any]) -> Any:
        """Call ``function(stream)`` while no turn of the stream is running, and return its result. From any thread."""
        return self.submit_and_wait(RunBetweenTurns(stream, function))

    def _new_runner(self, capacity: int) -> ModelRunner:
        """Allocate the pool: all memory there is, or for as many streams as there are slots."""
        text_config, dtype = self.model.text_model.config, self.model.dtype
        num_tokens = capacity * self.num_slots
        if self._memory_bytes is not None:
            num_tokens = self._memory_bytes // bytes_per_token(text_config, dtype, self.cache_dtype)
        settings = {"cache_dtype": self.cache_dtype, "is_elastic": self._memory_bytes is None}
        pool = KVPool.of(text_config, num_tokens, dtype, self.model.device, **settings)
        return ModelRunner(self.model, pool, num_slots=self.num_slots, **self._runner_settings)

    # --- requests

    def submit(self, request: Request) -> Future:
        """Queue a request behind those of its stream, and return its future. Raises ClosedError."""
        with self._scheduler.changed:
            self._check_open()
            if request.stream.is_closed:
                raise ClosedError("the stream is closed; open another one")
            self._scheduler.add(request)
        self._vision.prefetch(*self._scheduler.next_requests())
        return request.future

    def submit_and_wait(self, request: Request) -> Any:
        """Submit a request and wait for it. In the middle of a round it is refused and not queued."""
        self._check_not_in_round()
        self.submit(request)
        return self.wait(request)

    def wait(self, request: Request) -> Any:
        """Wait for a request and return its result or raise its error; without a worker, run the model here.

        Interrupted (Ctrl-C), the request ends with what was generated so far.
        """
        self._check_not_in_round()
        try:
            while self._worker is None and not request.future.done():
                self.step(request.future)
            return request.future.result()
        except BaseException:
            if not request.future.cancel():  # it has begun: its next token is the last
                request.abort_requested = True
            raise

    def run_until_idle(self):
        """Run rounds in this thread until all requests are done."""
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
        with self._scheduler.changed:
            self._is_closed = True
            self._scheduler.notify()
        if self._worker is not None:
            self._worker.join()
        with self._model_lock:
            self._finish(self._scheduler.requests, CancelledError())
        self._scheduler.notify()
        self._vision.close()

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, *_exception):
        self.close()

    def _run_worker(self):
        scheduler = self._scheduler
        while True:
            with scheduler.changed:
                scheduler.changed.wait_for(lambda: self._is_closed or scheduler.requests)
            if self._is_closed:
                return
            try:
                self.step()
            except Exception:  # the requests have failed with it; later ones must still be served
                log.exception("a round of the engine failed")

    def _check_open(self):
        if self._is_closed:
            raise ClosedError("the engine is closed; open another one")

    def _check_not_in_round(self):
        if threading.current_thread() is self._running_thread:
            raise StreamingVLMError(
                "this is in the middle of a turn (in on_token?), where the engine cannot be waited for; use submit, or "
                "another thread"
            )

    # --- a round

    def step(self, awaited: Future | None = None):
        """Run one round as soon as there is work; return without one if ``awaited`` is done by another thread."""
        scheduler = self._scheduler

        def is_awaited_done():
            return awaited is not None and awaited.done()

        with scheduler.changed:
            scheduler.changed.wait_for(lambda: self._can_run() or is_awaited_done() or not scheduler.requests)
        with self._model_lock, torch.inference_mode():
            if is_awaited_done():
                return
            self._running_thread = threading.current_thread()
            try:
                self._run_round()
            except BaseException as error:  # Ctrl-C: a request left half done would never be finished
                self._finish(scheduler.requests, error)
                raise
            finally:
                self._running_thread = None
                scheduler.notify()

    def _run_round(self):
        due, upcoming = self._scheduler.next_requests()
        self._vision.encode(due, upcoming)
        for request in due:
            if not request.needs_vision and self._scheduler.start(request):
                self._vision.synchronize(request)
                self._executor.begin(request)
        self._vision.prefetch(*self._scheduler.next_requests())
        self._executor.run_round()

    def _can_run(self) -> bool:
        due, _ = self._scheduler.next_requests()
        return self._is_closed or self._scheduler.has_running or any(map(self._vision.is_ready, due))

    def _finish(self, requests: Sequence[Request], error: BaseException):
        """Fail or cancel requests, waiting and running ones."""
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
        raise ConfigError("an engine needs num_slots or memory_bytes to know how much memory it may take; give one")
    for name, value in (("num_slots", num_slots), ("memory_bytes", memory_bytes)):
        if value is not None:
            at_least(name, value, 1, "room for a stream")
    at_least("max_prefill_tokens", max_prefill_tokens, 1, "tokens a round")
    if graphs and not can_capture(model):
        dtype = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"graphs=true with a model in {dtype} on {model.device.type}, but CUDA graphs need CUDA and half "
            "precision; leave it out"
        )
