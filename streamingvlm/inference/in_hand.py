"""The jobs that an engine has in hand: opened, fed, spoken word by word, ended.

What is done for several streams, be they fed or do they speak, is done in one pass. An error in it is that of all of
them; one in what belongs to a single stream (its text, whoever listens to it) is that stream's alone.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from streamingvlm.inference.forward import Meal
from streamingvlm.inference.job import Job
from streamingvlm.inference.runner import Runner
from streamingvlm.inference.sight import Sight


class JobsInHand:
    """At most one job of each stream.

    max_prefill_tokens: the most tokens fed in one pass.
    """

    def __init__(self, max_prefill_tokens: int):
        self.max_prefill_tokens = max_prefill_tokens
        self._feeding: list[Job] = []
        self._speaking: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """Those that speak, then those that are still to be fed."""
        return self._speaking + self._feeding

    def open_(self, job: Job, sight: Sight):
        """Take a job in hand whose frames were seen."""
        self._feeding.append(job)
        with self._failing([job]):
            if job.failure is not None:
                raise job.failure
            sight.hand_over(job)
            job.open_()
            if not job.is_fed:
                return self.end_(job)
            job.opened_at = time.perf_counter()
            job.decoder.prepare_(job.max_new_tokens)

    def advance_(self, runner: Runner):
        """Feed what is waiting, and let every stream that speaks say one token more.

        Both in one pass, in which a token costs a fraction of a pass of its own; in two where the token step is fixed.
        """
        if runner.fixed_shapes:
            self._feed_(runner)
            self._speak_(runner)
        elif self._feeding:
            self._feed_(runner, self._speaking)
        else:
            self._speak_(runner)

    def _feed_(self, runner: Runner, speaking: Sequence[Job] = ()):
        """Feed what is waiting, first come first, as much as one pass may, and the last token of those who speak."""
        feeding, meals = self._meals()
        if not feeding:
            return
        speaking = list(speaking)  # those who begin now are fed with the next pass
        with self._failing(feeding + speaking):
            for job in speaking:
                job.decoder.say_(job.reply[-1])
                meals.append((job.decoder, job.decoder.waiting()))
            logits = runner.feed_(meals)
            begun, first_logits = self._begin(feeding, logits[: len(feeding)], runner)
            speaking += begun
            if speaking:
                rows = torch.cat((logits[len(feeding) :], first_logits))
                self._take(speaking, runner.next_tokens_([job.sampler for job in speaking], rows))

    def _meals(self) -> tuple[list[Job], list[Meal]]:
        """The jobs that are fed with the next pass, and what of each."""
        jobs, meals, room = [], [], self.max_prefill_tokens
        for job in self._feeding:
            if room > 0:
                runs = job.decoder.waiting(room)
                room -= sum(map(len, runs))
                jobs.append(job)
                meals.append((job.decoder, runs))
        return jobs, meals

    def _speak_(self, runner: Runner):
        """One token more of each stream that speaks."""
        jobs = list(self._speaking)
        if not jobs:
            return
        with self._failing(jobs):
            for job in jobs:
                job.decoder.say_(job.reply[-1])
            tokens = runner.speak_(jobs)
            for job in jobs:
                job.decoder.said_()
            self._take(jobs, tokens)

    def end_(self, job: Job, error: BaseException | None = None):
        """Let go of a job, whether it is done or has failed."""
        for jobs in (self._feeding, self._speaking):
            if job in jobs:
                jobs.remove(job)
        job.end_(error)

    def _begin(self, jobs: Sequence[Job], logits: torch.Tensor, runner: Runner) -> tuple[list[Job], torch.Tensor]:
        """Return which jobs that were fed speak from now on, with their logits; others end, or are to be fed more."""
        fed = [place for place, job in enumerate(jobs) if not job.decoder.waiting(1)]
        if not fed:  # one with more than a pass may feed: the next pass is for the others
            self._feeding.append(self._feeding.pop(0))
        jobs, logits = self._weigh([jobs[place] for place in fed], logits[fed], runner)
        for job in jobs:
            self._feeding.remove(job)
            self._speaking.append(job)
            job.fed_at = time.perf_counter()
            job.spent_("prefill", job.fed_at - job.opened_at)
            if not job.max_new_tokens:
                self.end_(job)
        speaking = [place for place, job in enumerate(jobs) if job.max_new_tokens]
        return [jobs[place] for place in speaking], logits[speaking]

    def _weigh(self, jobs: Sequence[Job], logits: torch.Tensor, runner: Runner) -> tuple[Sequence[Job], torch.Tensor]:
        """Tell the jobs how their replies would begin; return those that begin now, with their logits."""
        if not any(job.first_ids for job in jobs):
            return jobs, logits
        now = []
        for place, weights in enumerate(runner.weigh(logits, [job.first_ids for job in jobs])):
            with self._failing([jobs[place]]):
                if not jobs[place].weighed_(weights, logits[place]):
                    now.append(place)
        return [jobs[place] for place in now], logits[now]

    def _take(self, jobs: Sequence[Job], tokens: Sequence[int]):
        """Give each job the next token of its reply."""
        for job, token in zip(jobs, tokens, strict=True):
            with self._failing([job]):
                job.take_(token)
                if job.is_done:
                    job.spent_("decode", time.perf_counter() - job.fed_at)
                    self.end_(job)

    @contextmanager
    def _failing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Let an error in the block be that of ``jobs``: they end here, the other streams go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whoever waits for a job is told
            for job in jobs:
                if not job.future.done():
                    self.end_(job, error)
