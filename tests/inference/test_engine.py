"""Many streams in one engine: each says what it would say alone, whoever else comes, goes, speaks or fails."""

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import frames
from tiny_streams import GREEDY, SMALL, VIDEO

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import ClosedError, ConfigError, EngineFull, StreamingVLMError, VideoError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.model_runner import ModelRunner
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.stream import Stream
from streamingvlm.video.video_turn import VideoTurn

CACHES = (
    SMALL,
    {**SMALL, "vision_window_s": 4.0, "turn_window_s": 2.0},
    {**SMALL, "vision_window_s": 1.0, "turn_window_s": 1.0},
    {**SMALL, "recompute_text": True},
    {**SMALL, "positions": "native"},
    {**SMALL, "recompute": True},
    {"policy": "full"},
    {"policy": "window", "vision_window_s": 3.0},
)
SAMPLINGS = (
    GREEDY,
    SamplingConfig(temperature=0, repetition_penalty=1.3, max_new_tokens=7),
    SamplingConfig(temperature=0.9, top_p=0.8, max_new_tokens=3, seed=5),
    SamplingConfig(temperature=1.1, repetition_penalty=1.0, max_new_tokens=9, seed=6),
    SamplingConfig(temperature=0, max_new_tokens=4, silence_threshold=0.0),
    SamplingConfig(temperature=0, max_new_tokens=4, silence_threshold=1.0),
)


def open_in(engine: Engine, **settings) -> StreamingSession:
    return StreamingSession(engine.model, engine=engine, **settings)


@dataclass
class Watched:
    """A stream of an engine, with what was handed over and what a session of its own says to it."""

    session: StreamingSession
    alone: StreamingSession
    futures: list = field(default_factory=list)
    expected: list[Commentary] = field(default_factory=list)

    def submit(self, picture: torch.Tensor, question: str):
        self.futures.append(self.session.submit(picture, question=question))
        self.expected.append(self.alone.step(picture, question=question))

    def check(self):
        for future, expected in zip(self.futures, self.expected, strict=True):
            line = future.result(timeout=0)
            assert (line.start_s, line.text, line.num_tokens) == (expected.start_s, expected.text, expected.num_tokens)
        assert self.session.inspect().ids == self.alone.inspect().ids
        assert self.session.layout == self.alone.layout


STREAMS = st.fixed_dictionaries(
    {
        "cache": st.sampled_from(CACHES),
        "video": st.sampled_from([VIDEO, VideoConfig(fps=4.0, turn_s=0.5, min_pixels=1, max_pixels=84 * 84)]),
        "sampling": st.sampled_from(SAMPLINGS),
        "query": st.sampled_from(["", "Who has the ball?"]),
        "previous_text": st.sampled_from(["", "The match is about to begin."]),
    }
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), STREAMS),
        st.tuples(st.just("submit"), st.integers(0, 99)),
        st.tuples(st.just("submit"), st.integers(0, 99)),
        st.tuples(st.just("submit"), st.integers(0, 99)),
        st.tuples(st.just("rounds"), st.integers(1, 8)),
        st.tuples(st.just("close"), st.integers(0, 99)),
    ),
    min_size=5,
    max_size=30,
)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@settings(max_examples=12)
@given(
    events=EVENTS,
    first=STREAMS,
    max_prefill_tokens=st.sampled_from([5, 40, 2048]),
    static_decode=st.booleans(),
)
def test_each_stream_says_what_it_says_alone(models, model_type, events, first, max_prefill_tokens, static_decode):
    model = models[model_type]
    engine = Engine(model, num_slots=5, max_prefill_tokens=max_prefill_tokens, static_decode=static_decode)
    streams: list[Watched] = []
    for number, (name, value) in enumerate([("open", first), *events]):
        if name == "open" and len(streams) < 5:
            streams.append(Watched(open_in(engine, **value), StreamingSession(model, **value)))
        elif name == "rounds":
            for _ in range(value):
                engine.step()
        elif name == "submit":
            stream = streams[value % len(streams)]
            size = 28 * (1 + value % 3)
            picture = frames(number, stream.session.video_config.num_frames, size, 56)
            stream.submit(picture, "How many goals?" if value % 7 == 0 else "")
        elif name == "close" and len(streams) > 1:
            stream = streams.pop(value % len(streams))
            engine.run_until_idle()
            stream.check()
            stream.session.close()
    engine.run_until_idle()
    for stream in streams:
        stream.check()


# Draws words that can be read; the likeliest tokens of a random model are white space.
WORDY = SamplingConfig(temperature=1.0, repetition_penalty=1.0, max_new_tokens=8, seed=1)


def open_many(model, number: int, sampling=GREEDY) -> tuple[Engine, list[StreamingSession]]:
    engine = Engine(model, num_slots=number)
    return engine, [open_in(engine, cache=SMALL, video=VIDEO, sampling=sampling) for _ in range(number)]


def test_forced_and_generated_turns_mix(model):
    engine, (hearing, speaking) = open_many(model, 2)
    alone = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=GREEDY)
    for second in range(5):
        said = speaking.submit(frames(second))
        hearing.step(frames(second), reply="goal")
        engine.run_until_idle()
        assert said.result(timeout=0).text == alone.step(frames(second)).text
    assert speaking.inspect().ids == alone.inspect().ids
    assert hearing.stats.num_tokens == 0


def test_all_slots_taken_is_told_in_one_line_and_a_closed_stream_makes_room(model):
    engine, sessions = open_many(model, 2)
    with pytest.raises(EngineFull, match="all 2 slots") as error:
        open_in(engine)
    assert "\n" not in str(error.value)
    sessions[0].close()
    assert engine.num_streams == 1
    assert open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY).step(frames(0)).num_tokens > 0


def test_closing_twice_closes_no_other_stream(model):
    engine, (first, _) = open_many(model, 2)
    first.close()
    next_one = open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    assert next_one.slot == first.slot
    first.close()
    assert engine.num_streams == 2
    assert next_one.step(frames(0)).num_tokens > 0


def test_a_closed_stream_accepts_no_requests(model):
    _, (closed, other) = open_many(model, 2)
    closed.close()
    for hand_over in (lambda: closed.submit(frames(0)), lambda: closed.step(frames(0)), lambda: closed.ask("Who?")):
        with pytest.raises(ClosedError, match="the stream is closed"):
            hand_over()
    assert other.step(frames(0)).num_tokens > 0


def test_questions_and_forced_turns_run_in_their_order(model):
    engine, (session, alone) = open_many(model, 2, WORDY)
    futures = [
        session.submit(frames(0)),
        session.submit_question("Who has the ball?", max_new_tokens=4),
        session.submit(frames(1), reply="A pass", question="What?"),
        session.submit(frames(2)),
    ]
    engine.run_until_idle()
    expected = [
        alone.step(frames(0)).text,
        alone.ask("Who has the ball?", max_new_tokens=4),
        alone.step(frames(1), reply="A pass", question="What?").text,
        alone.step(frames(2)).text,
    ]
    results = [future.result(timeout=0) for future in futures]
    assert [getattr(result, "text", result) for result in results] == expected
    assert session.inspect().ids == alone.inspect().ids


def test_memory_bounds_what_is_admitted(model):
    one = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=GREEDY)
    engine = Engine(model, memory_bytes=int(2.75 * one.inspect().num_bytes))
    first = open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    memory = first.engine.runner.pool.keys.data_ptr()
    second = open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    with pytest.raises(EngineFull, match=r"close a stream, give it smaller windows"):
        open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    smaller = {**SMALL, "vision_window_s": 1.0, "turn_window_s": 1.0}
    third = open_in(engine, cache=smaller, video=VIDEO, sampling=GREEDY)
    for session in (first, second, third):
        session.step(frames(0))
    assert first.engine.runner.pool.keys.data_ptr() == memory


def test_a_stream_that_outgrows_the_memory_fails_alone(model):
    engine = Engine(model, memory_bytes=4400 * StreamingSession(model).engine.runner.pool.bytes_per_token)
    unbounded = open_in(engine, cache={"policy": "full"}, video=VIDEO, sampling=GREEDY)
    bounded = open_in(
        engine,
        cache={**SMALL, "vision_window_s": 1.0, "turn_window_s": 1.0},
        video=VIDEO,
        sampling=GREEDY,
    )
    refused = unbounded.submit(frames(0), question="word " * 4000)
    assert bounded.step(frames(0)).num_tokens > 0
    with pytest.raises(EngineFull):
        refused.result(timeout=0)
    assert bounded.step(frames(1)).start_s == 1.0


def test_a_collected_session_frees_its_slot(model):
    engine, sessions = open_many(model, 2)
    sessions[0].step(frames(0))
    free = engine.runner.pool.num_free
    del sessions[0]
    gc.collect()
    assert engine.num_streams == 1
    open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    assert engine.runner.pool.num_free == free


def test_overloaded_streams_take_turns(model):
    engine, sessions = open_many(model, 4)
    done: list[int] = []
    for place, session in enumerate(sessions):
        for second in range(6):
            session.submit(frames(second)).add_done_callback(lambda _, place=place: done.append(place))
    engine.run_until_idle()
    counts = [0] * 4
    for place in done:
        counts[place] += 1
        assert max(counts) - min(counts) <= 1
    assert counts == [6] * 4


def test_a_stream_that_speaks_for_long_holds_up_nobody(model):
    engine = Engine(model, num_slots=2)
    chatty, terse = (open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY) for _ in range(2))
    never = chatty.format.stop_ids
    chatty.format.stop_ids = frozenset()
    long = chatty.submit(frames(0), max_new_tokens=200)
    for second in range(5):
        terse.step(frames(second))
        assert not long.done()
    engine.run_until_idle()
    chatty.format.stop_ids = never
    assert long.result().num_tokens == 200


@pytest.mark.parametrize("static_decode, num_passes", [(False, 1), (True, 2)])
def test_decoding_streams_join_the_prefill_pass(model, static_decode, num_passes):
    engine = Engine(model, num_slots=2, static_decode=static_decode)
    speaking, coming = (open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY) for _ in range(2))
    speaking.format.stop_ids = frozenset()
    spoken = speaking.submit(frames(0), max_new_tokens=20)
    engine.step()
    come = coming.submit(frames(1))
    num_fed = []
    hook = model.text_model.embed_tokens.register_forward_hook(lambda _, ids, __: num_fed.append(ids[0].numel()))
    with hook:
        engine.step()
    assert len(num_fed) == num_passes and num_fed[0] > 20
    assert not spoken.done() and not come.done()
    engine.run_until_idle()
    assert spoken.result().num_tokens == 20


def test_upcoming_turns_fill_the_vision_batch_of_a_due_one(model):
    engine, sessions = open_many(model, 3, WORDY)
    alone = [StreamingSession(model, cache=SMALL, video=VIDEO, sampling=WORDY) for _ in sessions]
    turns = [(place, frames(10 * place + second), 1 + 3 * place) for second in range(2) for place in range(3)]
    num_seen = []
    with model.vision_encoder().tower.register_forward_pre_hook(
        lambda _, __, named: num_seen.append(len(named["grid_thw"])), with_kwargs=True
    ):
        futures = [sessions[place].submit(picture, max_new_tokens=most) for place, picture, most in turns]
        engine.run_until_idle()
    assert num_seen == [3, 3], "the first to end brings the turns of the others"
    expected = [alone[place].step(picture, max_new_tokens=most) for place, picture, most in turns]
    assert [future.result().text for future in futures] == [line.text for line in expected]


def test_a_long_prefill_is_split_while_others_decode(model):
    engine = Engine(model, num_slots=2, max_prefill_tokens=20)
    reader, speaker = (open_in(engine, cache={"policy": "full"}, video=VIDEO, sampling=GREEDY) for _ in range(2))
    speaker.step(frames(0))
    long = reader.submit(frames(0), question="word " * 200)
    speaker.step(frames(1))
    assert not long.done()
    engine.run_until_idle()
    alone = StreamingSession(model, cache={"policy": "full"}, video=VIDEO, sampling=GREEDY)
    assert long.result().text == alone.step(frames(0), question="word " * 200).text


def test_a_long_prefill_takes_a_quarter_of_a_round_while_others_run(model, monkeypatch):
    lengths, prefill = [], ModelRunner.prefill

    def record(runner, batch):
        lengths.append((len(batch), max(sum(map(len, part.slices)) for part in batch)))
        return prefill(runner, batch)

    engine = Engine(model, num_slots=2, max_prefill_tokens=200)
    reader, speaker = (open_in(engine, cache={"policy": "full"}, video=VIDEO, sampling=GREEDY) for _ in range(2))
    monkeypatch.setattr(ModelRunner, "prefill", record)
    reader.submit(frames(0), question="word " * 300)
    engine.step()
    speaker.submit(frames(0))
    engine.run_until_idle()
    assert lengths[0] == (1, 200), "nobody waits"
    assert {longest for num, longest in lengths if num == 2} == {50}


def test_an_error_fails_one_stream_alone(model):
    engine, (good, bad, loud) = open_many(model, 3, WORDY)
    loud.on_token = lambda piece: 1 / 0
    good.on_token = lambda piece: None
    futures = [session.submit(frames(0)) for session in (good, loud)]
    wrong = bad.submit(torch.zeros(2, 3, 2, 800, dtype=torch.uint8))  # too long and narrow to encode
    engine.run_until_idle()
    assert isinstance(wrong.exception(), VideoError)
    assert isinstance(futures[1].exception(), ZeroDivisionError)
    assert futures[0].result().num_tokens > 0
    assert bad.num_turns == 0
    assert loud.num_turns == 1, "a turn that was opened is closed"
    loud.on_token = None
    assert [session.step(frames(1)).num_tokens > 0 for session in (good, bad, loud)] == [True] * 3


def test_a_broken_pass_fails_its_turns_and_the_engine_goes_on(model, monkeypatch):
    engine, sessions = open_many(model, 2)
    with monkeypatch.context() as patch:
        patch.setattr(model.text_model.layers[1].mlp, "forward", broken)
        futures = [session.submit(frames(0)) for session in sessions]
        engine.run_until_idle()
    assert all(isinstance(future.exception(), MemoryError) for future in futures)
    assert all(session.step(frames(1)).start_s == 1.0 for session in sessions)


def test_a_round_that_breaks_ends_what_was_handed_over_and_the_worker_goes_on(model, monkeypatch, caplog):
    engine, sessions = open_many(model, 2)
    with engine, monkeypatch.context() as patch:
        patch.setattr(engine._vision, "encode", broken)
        futures = [session.submit(frames(0)) for session in sessions]
        assert all(isinstance(future.exception(timeout=60), MemoryError) for future in futures)
        patch.undo()
        assert engine.is_running
        assert all(session.submit(frames(0)).result(timeout=60).num_tokens > 0 for session in sessions)
    assert not engine.is_running
    assert "a round of the engine failed" in caplog.text  # logged after they were told, so only now for certain


def broken(*_inputs):
    raise MemoryError


def test_ctrl_c_leaves_nothing_half_done(model):
    engine, sessions = open_many(model, 3, WORDY)
    pieces = []

    def interrupt(piece):
        pieces.append(piece)
        raise KeyboardInterrupt

    sessions[1].on_token = interrupt
    futures = [session.submit(frames(0)) for session in sessions]
    with pytest.raises(KeyboardInterrupt):
        engine.run_until_idle()
    assert pieces
    assert all(future.done() for future in futures)
    sessions[1].on_token = None
    assert [session.step(frames(1)).start_s for session in sessions] == [1.0] * 3


def test_a_worker_serves_many_threads(model):
    expected = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=WORDY)
    texts = [expected.step(frames(second)).text for second in range(6)]
    said = {}

    def watch(session):
        said[session.slot] = ([session.step(frames(second)).text for second in range(6)], threading.get_ident())

    with Engine(model, num_slots=4) as engine:
        ran_in = set()
        sessions = [open_in(engine, cache=SMALL, video=VIDEO, sampling=WORDY) for _ in range(4)]
        sessions[0].on_token = lambda _piece: ran_in.add(threading.get_ident())
        threads = [threading.Thread(target=watch, args=(session,)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [said[slot][0] for slot in range(4)] == [texts] * 4
    assert len(ran_in) == 1 and ran_in.isdisjoint(ident for _, ident in said.values())


def test_without_a_worker_several_threads_may_wait(model):
    _, sessions = open_many(model, 3)
    results = {}
    threads = [
        threading.Thread(target=lambda s=s: results.update({s.slot: [s.step(frames(i)).text for i in range(4)]}))
        for s in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0] == results[1] == results[2] != {}


def test_closing_an_engine_cancels_what_is_not_done(model):
    engine, (session,) = open_many(model, 1)
    futures = [session.submit(frames(second)) for second in range(3)]
    engine.close()
    assert wait(futures, timeout=0).not_done == set()
    with pytest.raises(CancelledError):
        futures[0].result()
    with pytest.raises(StreamingVLMError, match="closed"):
        session.submit(frames(3))


def test_reset_and_close_cancel_what_a_stream_waits_for(model):
    engine, (one, other) = open_many(model, 2)
    waiting = [one.submit(frames(0)), one.submit(frames(1))]
    kept = other.submit(frames(0))
    engine.step()
    one.reset()
    assert all(future.done() for future in waiting)
    engine.run_until_idle()
    assert kept.result().num_tokens > 0
    assert one.step(frames(0)).start_s == 0.0
    leaving = one.submit(frames(1))
    one.close()
    assert leaving.cancelled()
    assert engine.num_streams == 1


def test_waiting_inside_a_turn_is_refused(model):
    _, (session, other) = open_many(model, 2, WORDY)
    session.on_token = lambda _piece: other.step(frames(0))
    with pytest.raises(StreamingVLMError, match="in the middle of a turn"):
        session.step(frames(0))


def test_an_engine_needs_a_bound(model):
    with pytest.raises(ConfigError, match="num_slots"):
        Engine(model)
    with pytest.raises(ConfigError, match="memory_bytes"):
        Engine(model, memory_bytes=0)


def test_graphs_without_cuda_are_refused(model):
    with pytest.raises(ConfigError, match="float32 on cpu"):
        Engine(model, num_slots=1, graphs=True)


def test_an_elastic_engine_takes_larger_streams_and_more_of_them(model):
    engine, (small, gone) = open_many(model, 2)
    alone = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=GREEDY)
    for session in (small, gone, alone):
        session.step(frames(0), question="How many goals were there? " * 30)
    gone.close()
    wide = {**SMALL, "vision_window_s": 40.0, "turn_window_s": 40.0}
    large, other = (
        open_in(engine, cache=wide, video=VIDEO, sampling=GREEDY),
        StreamingSession(model, cache=wide, video=VIDEO, sampling=GREEDY),
    )
    for second in range(1, 4):
        assert small.step(frames(second)).text == alone.step(frames(second)).text
        assert large.step(frames(second)).text == other.step(frames(second)).text


def prefill_and_forget(runner: ModelRunner, stream: Stream):
    sequence, state = stream.sequence, stream.sequence.state
    with torch.inference_mode():
        sequence.append(stream.config.turn_format.prologue("an aside"))
        sequence.prepare_positions()
        runner.prefill_pending(sequence)
    sequence.state = state


@pytest.mark.parametrize("cache", CACHES)
def test_setting_an_earlier_state_removes_what_was_appended_since(model, cache):
    """What a fork needs: its tokens are written past the stream's own, and forgotten by setting the state."""
    forked, alone = (StreamingSession(model, cache=cache, video=VIDEO, sampling=GREEDY) for _ in range(2))
    for second in range(5):
        forked.step(frames(second))
        alone.step(frames(second))
        forked.run_between_turns(partial(prefill_and_forget, forked.engine.runner))
    assert forked.step(frames(9)).text == alone.step(frames(9)).text
    assert forked.inspect().ids == alone.inspect().ids


def test_the_varlen_kernel_gets_the_bounds_of_every_sequence(model, monkeypatch):
    """The call that CUDA gets, done by a plain reading of its documentation: the same tokens."""
    from streamingvlm.model import attention

    def plain(query, keys, values, *, offsets, max_seqlens, is_causal, scaling, seqlens_k):
        outputs = []
        assert [tensor.dtype for tensor in (*offsets, seqlens_k)] == [torch.int32] * 3
        for run in range(len(seqlens_k)):
            first, stop = offsets[0][run : run + 2].tolist()
            start, seen = int(offsets[1][run]), int(seqlens_k[run])
            assert stop - first <= max_seqlens[0] and seen <= max_seqlens[1]
            q, k, v = query[first:stop], keys[start : start + seen], values[start : start + seen]
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
            if is_causal:
                hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(seen - (stop - first) + 1)
                scores = scores.masked_fill(hidden, float("-inf"))
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(outputs)

    expected = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=GREEDY)
    texts = [expected.step(frames(second)).text for second in range(5)]
    monkeypatch.setattr(attention, "supports_varlen", lambda query: True)
    monkeypatch.setattr(attention, "_varlen", plain)
    engine = Engine(model, num_slots=3, static_decode=True)
    sessions = [open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY) for _ in range(3)]
    for second, text in enumerate(texts):
        futures = [session.submit(frames(second)) for session in sessions]
        engine.run_until_idle()
        assert [future.result().text for future in futures] == [text] * 3


def test_the_next_turn_is_encoded_while_this_one_is_decoded(model):
    engine = Engine(model, num_slots=1, async_vision=True)
    session = open_in(engine, cache=SMALL, video=VIDEO, sampling=WORDY)
    jobs = [session.turn_request(frames(second)) for second in range(2)]
    seen = []
    session.on_token = lambda _piece: seen.append(wait_until(lambda: not jobs[1].needs_vision))
    for job in jobs:
        engine.submit(job)
    engine.wait(jobs[0])
    assert seen and all(seen)
    alone = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=WORDY)
    assert [job.text for job in map(engine.wait, jobs)] == [alone.step(frames(second)).text for second in range(2)]
    engine.close()


def wait_until(is_true, timeout_s: float = 30.0) -> bool:
    ends = time.monotonic() + timeout_s
    while not is_true() and time.monotonic() < ends:
        time.sleep(0.005)
    return is_true()


def seconds(number: int, wrong: int = -1):
    for index in range(number):
        if index == wrong:
            raise VideoError("the camera is gone; plug it in")
        yield VideoTurn(index, index, index + 1, frames(index))


@pytest.mark.parametrize("has_worker", [False, True])
def test_a_stream_that_async_vision_says_the_same(model, has_worker):
    alone = StreamingSession(model, cache=SMALL, video=VIDEO, sampling=WORDY)
    expected = [line.text for line in alone.stream(seconds(8))]
    engine = Engine(model, num_slots=2, async_vision=True)
    if has_worker:
        engine.start()
    sessions = [open_in(engine, cache=SMALL, video=VIDEO, sampling=WORDY) for _ in range(2)]
    watched = zip(*(session.stream(seconds(8)) for session in sessions), strict=True)
    assert [tuple(line.text for line in lines) for lines in watched] == [(text, text) for text in expected]
    assert sessions[0].stats.stages.keys() == alone.stats.stages.keys()
    engine.close()


def test_a_source_that_fails_is_told_after_what_came_before(model):
    engine = Engine(model, num_slots=1, async_vision=True)
    session = open_in(engine, cache=SMALL, video=VIDEO, sampling=GREEDY)
    lines = session.stream(seconds(8, wrong=3))
    assert [next(lines).start_s for _ in range(3)] == [0, 1, 2]
    with pytest.raises(VideoError, match="the camera is gone"):
        next(lines)
    next(session.stream(seconds(5)))
    assert session.step(frames(0)).num_tokens > 0, "what was handed over and not heard is not in the way"
    wrong = session.turn_request(torch.zeros(2, 3, 2, 800, dtype=torch.uint8))
    engine.submit(wrong)
    with pytest.raises(VideoError, match="800"):
        engine.wait(wrong)
    with pytest.raises(VideoError, match="uint8"):
        session.turn_request(torch.zeros(2, 3, 8, 8))
    engine.close()


def test_an_engine_with_async_vision_is_collected(model):
    session = open_in(Engine(model, num_slots=1, async_vision=True), cache=SMALL, video=VIDEO, sampling=GREEDY)
    session.step(frames(0))
    engine = weakref.ref(session.engine)
    del session
    gc.collect()
    assert wait_until(lambda: engine() is None)


@pytest.mark.parametrize("cache", [CacheConfig(**SMALL)])
def test_a_session_is_a_context(model, cache):
    with StreamingSession(model, cache=cache, video=VIDEO, sampling=GREEDY) as session:
        session.step(frames(0))
        engine = session.engine
    assert engine.num_streams == 0
