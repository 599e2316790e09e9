"""Streams that join and leave one engine at random: nothing is lost, crossed or kept."""

import gc
import random
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import psutil
import pytest
import torch

from streamingvlm.config import CacheConfig, SamplingConfig
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.requests import Request
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.checkpoint import EMBEDDED
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.video.reader import open_video

NUM_PICTURES = 60
CACHES = tuple(
    CacheConfig(text_sink_tokens=4, text_window_tokens=16, vision_window_s=v, turn_window_s=t, recompute_text=reread)
    for v, t, reread in ((4.0, 4.0, True), (2.0, 3.0, False), (1.0, 1.0, True))
)
SAMPLINGS = (
    SamplingConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=12),
    SamplingConfig(temperature=0.8, repetition_penalty=1.1, max_new_tokens=6, seed=3),
)


@pytest.fixture(scope="module")
def model() -> StreamingModel:
    return load_model("pitch", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """Seconds of the bundled match, made small, as the model would make them itself."""
    with open_video(EMBEDDED["pitch"] / "match.mp4", fps=2.0, turn_s=1.0) as reader:
        return [s.frames[:, :, ::4, ::4].contiguous() for s, _ in zip(reader, range(NUM_PICTURES), strict=False)]


@dataclass(frozen=True)
class Part:
    """A stream that may come: from which picture on it watches, how it keeps and how it speaks."""

    first: int
    cache: int
    sampling: int

    def settings(self) -> dict:
        return {"cache": CACHES[self.cache], "sampling": SAMPLINGS[self.sampling]}


class Script:
    """What each part says when it is alone, turn by turn."""

    def __init__(self, model: StreamingModel, pictures: list[torch.Tensor]):
        self.model, self.pictures = model, pictures
        self.alone: dict[Part, tuple[StreamingSession, list[str]]] = {}

    def seconds(self, part: Part) -> Iterator[torch.Tensor]:
        for turn in range(NUM_PICTURES):
            yield self.pictures[(part.first + turn) % NUM_PICTURES]

    def texts(self, part: Part, num_turns: int) -> list[str]:
        if part not in self.alone:
            self.alone[part] = StreamingSession(self.model, **part.settings()), []
        session, texts = self.alone[part]
        while len(texts) < num_turns:
            texts.append(session.step(self.pictures[(part.first + len(texts)) % NUM_PICTURES]).text)
        return texts[:num_turns]


@dataclass
class Guest:
    """A stream in the engine, from its coming to its going."""

    part: Part
    session: StreamingSession
    seconds: Iterator[torch.Tensor]
    turns_to_stay: int
    pieces: list[str] = field(default_factory=list)
    futures: list[Future] = field(default_factory=list)

    def said(self) -> list[str]:
        return [future.result().text for future in self.futures if future.done() and not was_cancelled(future)]


def was_cancelled(future: Future) -> bool:
    """A turn that was in hand when its stream went can no longer be cancelled, it ends with the same error."""
    return future.cancelled() or isinstance(future.exception(), CancelledError)


class Soak:
    """Lets guests come, watch and go at random; counts what they said and checks every word."""

    def __init__(self, engine: Engine, script: Script, *, num_starts: int, longest_stay: int, seed: int = 0):
        self.engine, self.script, self.dice = engine, script, random.Random(seed)
        self.num_starts, self.longest_stay = num_starts, longest_stay
        self.guests: list[Guest] = []
        self.num_joined = self.num_turns = 0

    def round(self, most: int):
        """Some come, most watch a second more, some go."""
        while len(self.guests) < most and self.dice.random() < 0.9:
            self.join()
        for guest in self.guests:
            if len(guest.futures) < guest.turns_to_stay and self.dice.random() < 0.8:
                guest.futures.append(guest.session.submit(next(guest.seconds)))
        for guest in [guest for guest in self.guests if self.dice.random() < 0.7]:
            for future in guest.futures:
                future.result(timeout=300)
            if len(guest.futures) == guest.turns_to_stay:
                self.leave(guest)
        if self.guests and self.dice.random() < 0.3:
            self.leave(self.dice.choice(self.guests))  # in the middle of a turn, maybe

    def join(self):
        dice = self.dice
        part = Part(dice.randrange(self.num_starts) * 5, dice.randrange(len(CACHES)), dice.randrange(len(SAMPLINGS)))
        session = StreamingSession(self.engine.model, engine=self.engine, **part.settings())
        guest = Guest(part, session, self.script.seconds(part), dice.randint(1, self.longest_stay))
        session.on_token = guest.pieces.append
        self.guests.append(guest)
        self.num_joined += 1

    def leave(self, guest: Guest):
        self.guests.remove(guest)
        if self.dice.random() < 0.7:
            guest.session.close()
        said = guest.said()
        assert said == self.script.texts(guest.part, len(said)), guest.part
        finished = "".join(said).replace(" ", "")
        assert "".join(guest.pieces).replace(" ", "").startswith(finished)
        self.num_turns += len(said)

    def end(self):
        for guest in self.guests:
            for future in guest.futures:
                future.result(timeout=300)
        for guest in list(self.guests):
            self.leave(guest)


def soak(engine: Engine, script: Script, *, most: int, until, **settings) -> Soak:
    """Run rounds while ``until`` says so; the engine must be empty afterwards."""
    run = Soak(engine, script, **settings)
    while until(run):
        run.round(most)
    run.end()
    del run.guests[:]
    gc.collect()
    assert engine.num_streams == 0
    StreamingSession(engine.model, engine=engine).close()  # takes back what was left by those who were forgotten
    assert engine.runner.pool.num_free == engine.runner.pool.num_tokens
    return run


def test_streams_come_and_go_and_each_says_its_own(model, pictures):
    with Engine(model, num_slots=12) as engine:
        ends = iter(range(8))
        run = soak(
            engine,
            Script(model, pictures),
            most=12,
            num_starts=3,
            longest_stay=3,
            until=lambda _: next(ends, None) is not None,
        )
    assert run.num_joined > 20
    assert run.num_turns > 20
    gc.collect()
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), Request)], "a finished turn is freed"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_streams_come_and_go_for_ten_minutes(model, pictures):
    process, memory = psutil.Process(), []
    ends = time.monotonic() + 600

    def is_on(run: Soak) -> bool:
        memory.append(process.memory_info().rss)
        return time.monotonic() < ends

    script = Script(model, pictures)
    with Engine(model, num_slots=200) as engine:
        run = soak(engine, script, most=200, num_starts=4, longest_stay=6, until=is_on)
        num_tokens = engine.runner.pool.num_tokens
    quarter = len(memory) // 4
    early, late = max(memory[quarter : 2 * quarter]), max(memory[-quarter:])
    print(
        f"{run.num_joined} streams came and went, {run.num_turns} turns; resident memory {early / 2**20:.0f} MB in the "
        f"second quarter, {late / 2**20:.0f} MB in the last; a pool of {num_tokens} tokens"
    )
    assert run.num_joined > 200
    assert late < early * 1.05
