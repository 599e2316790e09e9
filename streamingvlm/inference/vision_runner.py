"""Encodes the frames of requests: when they are due, or one turn ahead while the language model is busy."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from streamingvlm.inference.requests import Request
from streamingvlm.model.vision import VisionFeatures

# Turns encoded in one pass: a bound on the memory of the vision tower, and on how long decoding streams wait.
_MAX_BATCH = 8
# A smaller batch is filled up with turns that are not due yet: with a small model on a CPU, a pass costs 5 ms and 3 ms
# a turn.
_FILL_BATCH = 4


def encode(requests: Sequence[Request]) -> dict[Request, VisionFeatures]:
    """Encode the frames of requests in one pass. A request whose frames cannot be encoded gets its ``vision_error``."""
    patches = {}
    for request in requests:
        try:
            encoder = request.stream.config.vision_encoder
            patches[request] = encoder.patches(request.frames, detail=request.detail)
        except Exception as error:  # noqa: BLE001 - raised when the request begins
            request.vision_error = error
    if not patches:
        return {}
    try:
        encoder = next(iter(patches)).stream.config.vision_encoder
        return dict(zip(patches, encoder.features_of_many(list(patches.values())), strict=True))
    except Exception as error:  # noqa: BLE001 - the same
        for request in patches:
            request.vision_error = error
        return {}


def _attach(features: dict[Request, VisionFeatures], duration_s: float):
    for request, vision in features.items():
        request.record_stage("vision", duration_s)
        request.vision = vision


class VisionRunner:
    """Encodes what is due, in the calling thread."""

    def encode(self, due: Sequence[Request], upcoming: Sequence[Request]):
        """Encode the first due turns, at most a batch; fill a small batch up with upcoming turns."""
        batch = [request for request in due if request.needs_vision][:_MAX_BATCH]
        if not batch:
            return
        batch += [request for request in upcoming if request.needs_vision][: max(0, _FILL_BATCH - len(batch))]
        started_at = time.perf_counter()
        features = encode(batch)
        _attach(features, time.perf_counter() - started_at)

    def prefetch(self, due: Sequence[Request], upcoming: Sequence[Request]):
        """Start encoding in another thread, if there is one."""

    def is_ready(self, _request: Request) -> bool:
        """Return True if the engine can go on with a due request."""
        return True

    def synchronize(self, request: Request):
        """Make a request's features safe to use in this thread."""

    def close(self):
        """Stop encoding."""


class AsyncVisionRunner(VisionRunner):
    """Encodes in its own thread, and on CUDA in its own stream: due turns first, then upcoming ones.

    on_encoded: called from that thread after each batch.
    """

    def __init__(self, device: torch.device, on_encoded: Callable[[], None]):
        self._on_encoded = on_encoded
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # An idle executor, unlike a waiting thread, holds no reference to its engine, which can then be collected.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vision")
        self._wanted: list[Request] = []
        self._encoding: list[Request] = []
        self._encoded_events: dict[Request, torch.cuda.Event] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def prefetch(self, due: Sequence[Request], upcoming: Sequence[Request]):
        """Replace the list of turns to encode; returns at once."""
        with self._lock:
            self._wanted = [r for r in (*due, *upcoming) if r.needs_vision and r not in self._encoding]
            if self._wanted and not self._encoding and not self._is_closed:
                self._thread.submit(self._encode_all, self._take_batch())

    encode = prefetch

    def is_ready(self, request: Request) -> bool:
        """Return True if the request's frames are encoded."""
        return not request.needs_vision

    def synchronize(self, request: Request):
        """Let the current CUDA stream wait for the tower's, and keep the features' memory until it has used them."""
        with self._lock:
            encoded = self._encoded_events.pop(request, None)
        if encoded is not None:
            current = torch.cuda.current_stream()
            current.wait_event(encoded)
            for level in (request.vision.embeddings, *request.vision.deepstack):
                level.record_stream(current)

    def close(self):
        """Stop after the batch that is being encoded."""
        with self._lock:
            self._wanted, self._is_closed = [], True
        self._thread.shutdown()

    def _take_batch(self) -> list[Request]:
        self._encoding, self._wanted = self._wanted[:_MAX_BATCH], self._wanted[_MAX_BATCH:]
        return self._encoding

    def _encode_all(self, batch: list[Request]):
        while batch:
            started_at = time.perf_counter()
            with torch.inference_mode(), torch.cuda.stream(self._stream):  # None keeps the current stream
                features = encode(batch)
                if self._stream is not None:
                    event = self._stream.record_event()
                    with self._lock:
                        self._encoded_events.update(dict.fromkeys(features, event))
            _attach(features, time.perf_counter() - started_at)
            with self._lock:
                batch = self._take_batch()
            self._on_encoded()
