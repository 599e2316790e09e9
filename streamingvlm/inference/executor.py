"""Executes a round: begins requests, runs the scheduled passes, and gives the sampled tokens to the requests.

Several streams share a forward pass. An error in `begin`, `on_first_logits` or `append` of a request, or in a callback
that it calls, fails only that request. Any other error in a pass fails all requests of the pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from streamingvlm.device import on_device
from streamingvlm.inference.batch import PrefillSlice
from streamingvlm.inference.model_runner import ModelRunner
from streamingvlm.inference.requests import Request
from streamingvlm.inference.scheduler import ScheduledPrefill, Scheduler


class Executor:
    """Runs the requests of a scheduler with a model runner."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner):
        self.scheduler = scheduler
        self.runner = runner

    def begin(self, request: Request):
        """Begin an admitted request whose frames are encoded."""
        with self._failing([request]):
            request.begin(self.runner.prefill_pending)
            if not request.has_prefill:
                self.finish(request)

    def run_round(self):
        """Run the scheduled prefills, and decode one token of every decoding stream.

        Decodes join the prefill pass, which is cheaper than a pass of their own; with static_decode they run
        separately.
        """
        plan = self.scheduler.schedule()
        if self.runner.static_decode:
            if plan.prefills:
                self._prefill(plan.prefills, [])
            self._decode(self.scheduler.schedule().decodes)  # includes requests that just finished their prefill
        elif plan.prefills:
            self._prefill(plan.prefills, plan.decodes)
        else:
            self._decode(plan.decodes)

    def finish(self, request: Request, error: BaseException | None = None):
        """Remove a request from the scheduler and resolve its future."""
        self.scheduler.remove([request])
        request.finish(error)

    def _prefill(self, prefills: Sequence[ScheduledPrefill], decodes: Sequence[Request]):
        requests = [prefill.request for prefill in prefills]
        with self._failing([*requests, *decodes]):
            batch = [PrefillSlice(request.sequence, request.sequence.pending(num)) for request, num in prefills]
            for request in decodes:
                request.sequence.append_token(request.reply[-1])
                batch.append(PrefillSlice(request.sequence, request.sequence.pending()))
            logits = self.runner.prefill(batch)  # also commits the tokens of the decodes
            started, first_logits = self._after_prefill(requests, logits[: len(requests)])
            sampled = [*decodes, *started]
            if sampled:
                rows = torch.cat((logits[len(requests) :], first_logits))
                self._append(sampled, self.runner.sample_next([request.sampler for request in sampled], rows))

    def _decode(self, requests: Sequence[Request]):
        if not requests:
            return
        with self._failing(requests):
            for request in requests:
                request.sequence.append_token(request.reply[-1])
            tokens = self.runner.decode(requests)
            for request in requests:
                request.sequence.commit_token()
            self._append(requests, tokens)

    def _after_prefill(self, requests: Sequence[Request], logits: torch.Tensor) -> tuple[list[Request], torch.Tensor]:
        """Advance requests whose prefill is complete; return those that generate a reply, with their logits."""
        complete = [row for row, request in enumerate(requests) if not request.sequence.num_pending]
        if not complete:  # the first one used the whole budget
            self.scheduler.defer_first_prefill()
        requests, logits = self._score([requests[row] for row in complete], _select_rows(logits, complete))
        for request in requests:
            self.scheduler.start_decoding(request)
            request.start_decoding()
            if not request.max_new_tokens:  # a forced reply, or a question with choices
                self.finish(request)
        started = [row for row, request in enumerate(requests) if request.max_new_tokens]
        return [requests[row] for row in started], _select_rows(logits, started)

    def _score(self, requests: Sequence[Request], logits: torch.Tensor) -> tuple[Sequence[Request], torch.Tensor]:
        """Call `on_first_logits` of requests with scores; return all that have no more tokens to prefill."""
        if not any(request.score_token_ids for request in requests):
            return requests, logits
        ready = []
        scores = self.runner.score_tokens(logits, [request.score_token_ids for request in requests])
        for row, (request, probabilities) in enumerate(zip(requests, scores, strict=True)):
            with self._failing([request]):
                # A forced silence, which is prefilled in a second pass, has nothing left to score.
                if not (request.score_token_ids and request.on_first_logits(probabilities, logits[row])):
                    ready.append(row)
        return [requests[row] for row in ready], _select_rows(logits, ready)

    def _append(self, requests: Sequence[Request], tokens: Sequence[int]):
        for request, token in zip(requests, tokens, strict=True):
            with self._failing([request]):
                request.append(token)
                if request.is_complete:
                    request.record_stage("decode", request.token_times[-1] - request.decode_started_at)
                    self.finish(request)

    @contextmanager
    def _failing(self, requests: Sequence[Request]) -> Iterator[None]:
        """On an exception in the block, fail ``requests``; other requests continue."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by future.result()
            for request in requests:
                if not request.future.done():
                    self.finish(request, error)


def _select_rows(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Return the rows with these ascending indices. With a list as index, the host would wait for its copy to CUDA."""
    return logits if len(rows) == len(logits) else logits[on_device(rows, torch.long, logits.device)]
