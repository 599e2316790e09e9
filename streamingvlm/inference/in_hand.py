"""The jobs that an engine has in hand: opened, fed, spoken word by word, ended.

What is done for several streams is done in one pass. An error in it is that of the streams of the pass; one in what
belongs to a single stream (its text, whoever listens to it) is that stream's alone.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

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

    def feed_(self, runner: Runner):
        """Feed what is waiting, the first come first, as much as one pass may."""
        jobs, meals, room = [], [], self.max_prefill_tokens
        for job in self._feeding:
            if room > 0:
                runs = job.decoder.waiting(room)
                room -= sum(map(len, runs))
                jobs.append(job)
                meals.append((job.decoder, runs))
        if not jobs:
            return
        with self._failing(jobs):
            logits = runner.feed_(meals)
            fed = [place for place, job in enumerate(jobs) if not job.decoder.waiting(1)]
            if not fed:  # one with more than a pass may feed: the next pass is for the others
                self._feeding.append(self._feeding.pop(0))
            self._begin([jobs[place] for place in fed], logits[fed] if len(fed) < len(jobs) else logits, runner)

    def speak_(self, runner: Runner):
        """One token more of each stream that speaks."""
        jobs = list(self._speaking)
        if not jobs:
            return
        with self._failing(jobs):
            for job in jobs:
                job.decoder.say_(job.reply[-1])
            for job, token in zip(jobs, runner.speak_(jobs), strict=True):
                job.decoder.said_()
                self._take(job, token)

    def end_(self, job: Job, error: BaseException | None = None):
        """Let go of a job, whether it is done or has failed."""
        for jobs in (self._feeding, self._speaking):
            if job in jobs:
                jobs.remove(job)
        job.end_(error)

    def _begin(self, jobs: Sequence[Job], logits: torch.Tensor, runner: Runner):
        """Choose the first token of each job that speaks; the others are done, or want to be fed again."""
        jobs, logits = self._weigh(jobs, logits, runner)
        speaking = [place for place, job in enumerate(jobs) if job.max_new_tokens]
        tokens = iter(())
        if speaking:
            logits = logits[speaking] if len(speaking) < len(jobs) else logits
            tokens = iter(runner.begin_([jobs[place].sampler for place in speaking], logits))
        for job in jobs:
            self._feeding.remove(job)
            self._speaking.append(job)
            job.fed_at = time.perf_counter()
            job.spent_("prefill", job.fed_at - job.opened_at)
            if job.max_new_tokens:
                self._take(job, next(tokens))
            else:
                self.end_(job)

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

    def _take(self, job: Job, token: int):
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
