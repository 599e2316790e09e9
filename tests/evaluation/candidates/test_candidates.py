"""Candidates on real files: they reply as the session does, and no reply depends on later frames."""

import base64
import io
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
from chat_server import ChatServer
from PIL import Image

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.evaluation.candidates.endpoint_candidate import EndpointCandidate, EndpointView
from streamingvlm.evaluation.candidates.last_frames import LastFrames
from streamingvlm.evaluation.candidates.opening import candidate_from
from streamingvlm.evaluation.candidates.session_candidate import SessionCandidate
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.inference.session import StreamingSession
from streamingvlm.pitch import Match, render
from streamingvlm.video.encoder import write_video

FPS = 4


def pictures(seed, duration_s, dark_from_s=None):
    for index, second in enumerate(islice(Match(seed).seconds(), duration_s)):
        for frame in render(second, fps=FPS):
            shown = frame * (dark_from_s is None or index < dark_from_s)
            yield shown.permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    path = tmp_path_factory.mktemp("match") / "match.mp4"
    write_video(path, pictures(11, 12), fps=FPS)
    return path


@pytest.fixture(scope="module")
def pitch():
    return SessionCandidate("pitch")


@pytest.fixture(scope="module")
def last_frames(pitch):
    return LastFrames(pitch.model, num_frames=4)


def texts(lines):
    return [line.text for line in lines]


def test_a_session_candidate_says_what_the_session_says(match, pitch):
    session = StreamingSession(pitch.model, previous_text=Match(11).intro)
    expected = texts(session.stream(match))
    assert texts(pitch.comment(Clip(match, previous_text=Match(11).intro))) == expected
    assert any(expected)


@pytest.mark.parametrize("kind", [SessionCandidate, LastFrames])
def test_lines_have_the_times_of_the_file_and_stay_in_the_clip(match, pitch, kind):
    lines = list(kind(pitch.model).comment(Clip(match, 3.5, 7.9)))
    assert [(line.start_s, line.end_s) for line in lines] == [(3.5, 4.5), (4.5, 5.5), (5.5, 6.5), (6.5, 7.5)]


@pytest.mark.parametrize("kind", [SessionCandidate, LastFrames])
def test_what_comes_later_changes_no_line(match, pitch, kind, tmp_path):
    write_video(tmp_path / "dark.mp4", pictures(11, 12, dark_from_s=6), fps=FPS)
    as_it_is, as_it_might_be = (
        texts(kind(pitch.model).comment(Clip(video))) for video in (match, tmp_path / "dark.mp4")
    )
    # The encoder may look ahead by a frame or two; the model must not.
    assert as_it_is[:5] == as_it_might_be[:5]
    assert as_it_is[6:] != as_it_might_be[6:]


def test_the_last_frames_are_all_that_is_remembered(match, last_frames):
    told = {"query": "Who has the ball?", "previous_text": "Red against black."}
    watched = texts(last_frames.comment(Clip(match, 0.0, 10.0, **told)))
    for second in (4, 9):
        _, afresh = last_frames.comment(Clip(match, second - 1.0, second + 1.0, **told))
        assert afresh.text == watched[second]


def test_the_last_frames_keep_the_text_that_was_given_and_none_of_their_own(match, last_frames):
    session = last_frames.open_session(clip := Clip(match, previous_text="Red against black."))
    said = [session.step(second).text for second in clip.turns(last_frames.video_config)]
    assert any(said[:-2])
    speech = {s.turn for s in session.layout.segments if s.kind is SegmentKind.SPEECH}
    assert speech <= {len(said) - 1}
    previous = sum(s.num_tokens for s in session.layout.segments if s.kind is SegmentKind.PREVIOUS)
    assert previous == len(session.format.encode_plain("Red against black."))
    assert session.format.decode(session.inspect().ids).count("Time=") == 2


def test_long_text_from_before_is_cut_for_the_last_frames_as_for_any_session(match, last_frames):
    clip = Clip(match, previous_text="Red against black. " * 400)
    cut = last_frames.open_session(clip).previous_text
    limits = last_frames.cache_config
    num_kept = len(last_frames.open_session(clip).format.encode_plain(cut))
    assert num_kept <= limits.text_sink_tokens + limits.text_window_tokens
    assert clip.previous_text.startswith(cut[:20])


@pytest.mark.parametrize("num_frames", [0, 1, 5])
def test_frames_that_are_no_whole_turn_are_named(pitch, num_frames):
    with pytest.raises(ConfigError, match=f"num_frames={num_frames} is no whole number of turns of 2 frames"):
        LastFrames(pitch.model, num_frames=num_frames)


def test_each_says_how_it_answers(pitch, last_frames):
    assert (pitch.name, pitch.path) == ("pitch", "streaming cache")
    assert last_frames.path == "last 4 frames, no cache"
    policies = ({"policy": p} for p in ("streaming", "full", "window", "reference"))
    paths = [SessionCandidate(pitch.model, cache=cache).path for cache in (*policies, {"recompute": True})]
    assert len(set(paths)) == 5
    assert SessionCandidate(pitch.model, name="ours").name == "ours"


def test_a_video_that_is_not_there_is_named(pitch, tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4"):
        list(pitch.comment(Clip(tmp_path / "gone.mp4")))


# What a model behind an address is sent.


def parts(body, kind):
    return [part for part in body["messages"][-1]["content"] if part["type"] == kind]


def images(body):
    urls = [part["image_url"]["url"] for part in parts(body, "image_url")]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


@pytest.fixture
def endpoint_candidate(tmp_path):
    def candidate(server, **view):
        config = EndpointConfig("m", server.url, api_key_env=None, max_retries=2)
        return EndpointCandidate(ChatEndpoint(config, tmp_path / "answers"), EndpointView(**view))

    return candidate


def numbered(body, num_before):
    return f"line {len(images(body))}"


def test_an_endpoint_gets_a_request_per_turn_with_its_earlier_replies(match, endpoint_candidate):
    with ChatServer(numbered) as server:
        candidate = endpoint_candidate(server, turn_s=4, fps=2)
        clip = Clip(match, 1.0, 10.5, query="Be brief.", previous_text="Red against black.")
        estimate = candidate.estimate([clip])
        lines = list(candidate.comment(clip))
    assert estimate.num_requests == len(server.requests)
    assert [(line.start_s, line.end_s, line.text) for line in lines] == [
        (1.0, 5.0, "line 8"),
        (5.0, 9.0, "line 8"),
        (9.0, 10.0, "line 2"),
    ]
    [told] = parts(server.requests[2], "text")
    assert "Be brief." in told["text"] and "Red against black. line 8 line 8" in told["text"]


def test_an_endpoint_sees_the_frames_of_its_turn_and_no_later_ones(match, endpoint_candidate):
    with ChatServer(numbered) as server:
        list(endpoint_candidate(server, turn_s=3, fps=2, max_frames=3).comment(Clip(match, 0.0, 6.0)))
    truth = np.stack(list(pictures(11, 6)))[::2].astype(int)  # at 2 frames a second
    for body, first in zip(server.requests, (0, 6), strict=True):
        nearest = [int(np.abs(truth - seen).mean(axis=(1, 2, 3)).argmin()) for seen in images(body)]
        assert nearest == [first + 1, first + 3, first + 5]


def test_frames_are_shrunk_and_text_from_before_is_cut(match, endpoint_candidate):
    with ChatServer(numbered) as server:
        view = {"max_pixels": 56 * 56, "history_characters": 10}
        list(endpoint_candidate(server, **view).comment(Clip(match, 0.0, 2.0, previous_text="a" * 90 + "b" * 10)))
    assert {image.shape for image in images(server.requests[0])} == {(56, 56, 3)}
    [told] = parts(server.requests[0], "text")
    assert ": " + "b" * 10 in told["text"] and "a" * 10 not in told["text"]


@pytest.mark.parametrize("reply, text", [("...", ""), ("…", ""), (" Goal!\n\nYes. ", "Goal! Yes."), ("", "")])
def test_three_dots_are_silence_and_so_is_no_answer(match, endpoint_candidate, reply, text):
    with ChatServer(lambda *_: reply) as server:
        [line] = endpoint_candidate(server).comment(Clip(match, 0.0, 3.0))
    assert (line.text, line.is_silent) == (text, not text)


def test_replies_of_an_endpoint_are_stored_without_frames_and_not_requested_again(match, endpoint_candidate, tmp_path):
    failures = {2: 429, 3: None, 4: 500}

    def fails_in_between(body, num_before):
        return failures.get(len(server.requests)) or ("a " + "line " * len(body["messages"]))

    with ChatServer(fails_in_between) as server:
        clip = Clip(match, 0.0, 6.0)
        once, again = (texts(endpoint_candidate(server, turn_s=2).comment(clip)) for _ in range(2))
        num_asked = len(server.requests)
    assert once == again and all(once)
    assert 3 <= num_asked <= 6
    kept = [file.read_text() for file in (tmp_path / "answers").rglob("*.json")]
    assert len(kept) == 3
    assert not [text for text in kept if "base64" in text or "sha256" not in text]


def test_an_endpoint_answers_a_question_from_frames_of_the_whole_clip(match, endpoint_candidate):
    with ChatServer(lambda *_: " Black. ") as server:
        candidate = endpoint_candidate(server, fps=2, max_frames=4)
        assert candidate.answer(Clip(match, 0.0, 12.0, previous_text="Before."), "Who scored?") == "Black."
    truth = np.stack(list(pictures(11, 12)))[::2].astype(int)
    nearest = [int(np.abs(truth - seen).mean(axis=(1, 2, 3)).argmin()) for seen in images(server.requests[0])]
    assert len(nearest) == 4 and nearest[-1] == 23
    gaps = np.diff(nearest)
    assert gaps.min() >= 5 and gaps.max() <= 7
    [told] = parts(server.requests[0], "text")
    assert "Who scored?" in told["text"] and "Before." in told["text"]


# By options.


@pytest.mark.parametrize("setting", ["turn_s", "fps", "max_frames", "max_pixels", "max_tokens", "history_characters"])
def test_a_view_out_of_range_is_named(setting):
    with pytest.raises(ConfigError, match=f"candidate.{setting}"):
        EndpointView(**{setting: -1})


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match=r"candidate\.kind=oracle is unknown; choose one of session, last_frames"):
        candidate_from({"kind": "oracle"})


def test_options_make_candidates(tmp_path):
    model = {"name": "pitch", "device": "cpu", "dtype": None}
    ours = candidate_from({"kind": "session", "name": "ours", "model": model, "cache": {"policy": "window"}})
    assert (ours.name, ours.path) == ("ours", "window without overlap")
    simple = candidate_from({"kind": "last_frames", "name": None, "model": model, "num_frames": 8})
    assert simple.window_s == 4.0
    view = {field.name: field.default for field in fields(EndpointView)} | {"turn_s": 5.0}
    remote = candidate_from(
        {"kind": "endpoint", "name": None, **view, "endpoint": {"model": "m", "api_key_env": None}},
        work_folder=tmp_path,
    )
    assert (remote.name, remote.view.turn_s, remote.num_parallel) == ("m", 5.0, 8)
