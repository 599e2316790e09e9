"""What a user gives a session: frames in any form, sources, settings; and how its objects print."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_inputs import frames
from tiny_streams import GREEDY, SMALL

from streamingvlm.config import CacheConfig, VideoConfig
from streamingvlm.errors import StreamingVLMError, VideoError
from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.video.video_turn import VideoTurn

VIDEO = VideoConfig(min_pixels=1, max_pixels=84 * 84)


def small_session(model, **settings) -> StreamingSession:
    return StreamingSession(model, cache=SMALL, video=VIDEO, sampling=GREEDY, **settings)


def test_the_same_frames_in_every_form_give_the_same_tokens(model):
    turns = [frames(turn) for turn in range(3)]
    expected = ids_after(small_session(model), turns)
    arrays = [turn.permute(0, 2, 3, 1).numpy() for turn in turns]
    images = [list(map(Image.fromarray, array)) for array in arrays]
    for form in (arrays, images, [turn.numpy() for turn in turns], [list(turn) for turn in turns]):
        assert ids_after(small_session(model), form) == expected
    single = [frame for turn in images for frame in turn]
    for source in (torch.cat(turns), np.concatenate(arrays), single, iter(single), images):
        session = small_session(model)
        assert len(list(session.stream(source))) == 3
        assert session.inspect().ids == expected


def ids_after(session, turns) -> list[int]:
    for turn in turns:
        session.step(turn)
    return session.inspect().ids


@pytest.mark.parametrize("num_frames, detail", [(1, 1.0), (3, 1.0), (3, 0.5)])
def test_another_number_of_frames_than_a_turn_has_is_refused_with_both_numbers(model, num_frames, detail):
    session = small_session(model)
    for turn in (frames(0, num_frames), VideoTurn(0, 0.0, 1.0, frames(0, num_frames), detail=detail)):
        if detail < 1 and not isinstance(turn, VideoTurn):
            continue
        with pytest.raises(
            VideoError, match=f"frames of a turn are {num_frames}, expected 2: video.fps=2 times video.turn_s=1"
        ):
            session.submit(turn)
    assert session.num_turns == 0


def test_a_turn_of_less_detail_may_have_fewer_frames(model):
    assert small_session(model).step(VideoTurn(0, 0.0, 1.0, frames(0, 1), detail=0.5)).detail == 0.5


@pytest.mark.parametrize(
    "action, line",
    [
        (lambda model: small_session(model).step(None), "a frame is None, expected"),
        (lambda model: list(small_session(model).stream(None)), "the source is None, expected a path"),
        (lambda model: list(small_session(model).stream(7)), "webcam:7"),
        (lambda model: StreamingSession("pitch"), r"write StreamingSession\.from_pretrained\('pitch'"),
        (lambda model: StreamingSession.load("folder", model="pitch"), r"model=load_model\('pitch'\)"),
        (lambda model: Engine("pitch", num_slots=1), r"Engine\(load_model\('pitch'\)"),
        (lambda model: StreamingSession(model, cache="sink"), "cache.policy=sink is unknown; choose one of streaming"),
        (lambda model: StreamingSession(model, cache=3), "cache=3 is a int, expected settings by name or CacheConfig"),
        (lambda model: StreamingSession(model, video="4k"), "video='4k' is a str, expected settings by name"),
    ],
)
def test_a_slip_gets_one_clear_line(model, action, line):
    with pytest.raises(StreamingVLMError, match=line) as error:
        action(model)
    assert "\n" not in str(error.value)


def test_the_name_of_a_policy_is_short_for_the_setting(model):
    assert StreamingSession(model, cache="window").cache_config == CacheConfig(policy="window")


def test_session_engine_and_line_print_as_one_line(model):
    session = small_session(model)
    line = session.step(frames(0), reply="A goal!")
    assert repr(line) == "Commentary(0.0-1.0 s, 'A goal!')"
    tokens = session.layout.num_tokens
    assert repr(session) == f"StreamingSession({model.name}, streaming, 1 turns, {tokens} tokens cached)"
    assert repr(session.engine) == f"Engine({model.name}, 1 of 1 streams, 0 requests waiting)"
    session.close()
    session.engine.close()
    assert repr(session).endswith("closed)") and repr(session.engine).endswith("closed)")


def test_the_drawn_layout_shows_sink_and_window(model):
    session = small_session(model, previous_text="The crowd is on its feet. " * 3)
    session.step(frames(0))
    kinds = {span.kind: span.num_tokens for span in session.layout.cache_spans()}
    assert (kinds["sink"], kinds["window"]) == (SMALL["text_sink_tokens"], SMALL["text_window_tokens"])
