"""One-shot clips, asked for by OpenAI's own client."""

import base64
import gzip
import io
import threading
import time
from dataclasses import replace

import httpx
import openai
import pytest
from openai.types.chat import completion_create_params
from PIL import Image
from running_server import KEY, MATCH, PATIENCE_S, error_of, held, turns_of

from streamingvlm import StreamingSession
from streamingvlm.video.reader import open_video


@pytest.fixture(scope="module")
def locked(serving):
    with serving(api_keys=(KEY,), limits={"max_clip_s": 20}) as server:
        yield server


@pytest.fixture
def client(locked):
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0, timeout=120) as opened:
        yield opened


def data_url(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def images(jpegs):
    return [{"type": "image_url", "image_url": {"url": data_url("image/jpeg", jpeg)}} for jpeg in jpegs]


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The first six seconds of the match as an mp4 of its own."""
    import av

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(MATCH)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None or packet.pts * packet.time_base >= 6:
                break
            packet.stream = stream
            target.mux(packet)
    return path


@pytest.fixture(scope="module")
def commentary(pitch, clip):
    """What the embedded model says of that clip, as on the command line."""
    return [line for line in StreamingSession(pitch).stream(clip) if line.text]


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["pitch"]


def test_a_clip_without_a_question_gets_its_commentary(client, clip, commentary):
    video = {"type": "video_url", "video_url": {"url": data_url("video/mp4", clip.read_bytes())}}
    completion = client.chat.completions.create(model="pitch", messages=user(video))
    assert completion.choices[0].message.content.splitlines() == [line.text for line in commentary]
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens >= sum(line.num_tokens for line in commentary)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_a_streamed_completion_has_the_same_text(client, clip, commentary):
    video = {"type": "video_url", "video_url": {"url": data_url("video/mp4", clip.read_bytes())}}
    chunks = list(
        client.chat.completions.create(
            model="pitch", messages=user(video), stream=True, stream_options={"include_usage": True}
        )
    )
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told).splitlines() == [line.text for line in commentary]
    assert len([piece for piece in told if piece]) == len(commentary)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0


def test_images_are_a_clip_at_the_models_frame_rate(client, pitch):
    with open_video(MATCH) as video:
        seconds = [second for _, second in zip(range(4), video, strict=False)]
    from running_server import as_jpeg

    jpegs = [as_jpeg(frame) for second in seconds for frame in second.frames]
    completion = client.chat.completions.create(model="pitch", messages=user(*images(jpegs)))
    assert completion.choices[0].message.content
    assert len(completion.choices[0].message.content.splitlines()) <= 4


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_question_joins_the_last_turn(client, pitch, match_jpegs, streams):
    messages = [
        {"role": "system", "content": "Be brief."},
        *user(*images(match_jpegs[:8]), {"type": "text", "text": "pass"}),
    ]
    answer = client.chat.completions.create(model="pitch", messages=messages, max_tokens=5, stream=streams)
    if streams:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.usage.completion_tokens <= 5
    assert text == expected_answer(pitch, match_jpegs[:8])


def expected_answer(pitch, jpegs):
    import torch

    from streamingvlm.serving.jpeg import decode_jpeg
    from streamingvlm.video.video_turn import VideoTurn

    frames = [decode_jpeg(jpeg, max_pixels=10**6) for jpeg in jpegs]
    session = StreamingSession(pitch, query="Be brief.")
    for i in range(3):
        session.step(VideoTurn(i, i, i + 1, torch.stack(frames[2 * i : 2 * i + 2])), reply="")
    return session.step(VideoTurn(3, 3, 4, torch.stack(frames[6:8])), question="pass", max_new_tokens=5).text


def test_an_answer_stops_at_max_tokens(client, match_jpegs):
    answer = client.chat.completions.create(
        model="pitch", messages=user(*images(match_jpegs[:2]), {"type": "text", "text": "kick-off for"}), max_tokens=1
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 1


def test_a_wrong_key_and_a_wrong_model_are_errors_of_the_client(locked, client):
    stranger = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o' here"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "parts, told",
    [
        ([{"type": "text", "text": "hello"}], "give one clip"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.jpg"}}], "must be sent within the request"),
        ([{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,***"}}], "not valid base64"),
        ([{"type": "image_url", "image_url": {"url": data_url("image/jpeg", b"hello")}}], "cannot be read"),
        ([{"type": "image_url"}], "has no URL"),
        (
            [{"type": "video_url", "video_url": {"url": data_url("video/mp4", b"hello" * 100)}}],
            "the clip is not a video",
        ),
        ([{"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}], "must be sent within the request"),
        ([{"type": "video_url", "video_url": {"url": data_url("video/mp4", MATCH.read_bytes())}}], "longer than 20 s"),
        ([{"type": "audio", "audio": {}}], "type"),
    ],
)
def test_an_invalid_clip_is_refused_before_the_response_starts(client, parts, told, streams):
    with pytest.raises(openai.BadRequestError, match=told) as error:
        client.chat.completions.create(model="pitch", messages=user(*parts), stream=streams)
    assert "\n" not in error.value.body["message"]
    assert "/tmp" not in error.value.body["message"]


def test_concurrent_clips_are_limited(serving, match_jpegs):
    body = {"model": "pitch", "messages": user(*images(match_jpegs[:2]))}
    with serving(limits={"max_clips": 1}) as server:
        clips = [threading.Thread(target=lambda: answers.append(ask(server, body))) for _ in range(2)]
        answers = []
        with held(server, match_jpegs[:2]):
            for clip in clips:
                clip.start()
            while not answers:
                time.sleep(0.02)
        for clip in clips:
            clip.join()
        assert [answer.status_code for answer in answers] == [429, 200]
        assert "1 clips are being processed" in error_of(answers[0])


def ask(server, body):
    return server.http.post("/v1/chat/completions", json=body)


def test_a_clip_leaves_no_files(client, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    video = {"type": "video_url", "video_url": {"url": data_url("video/mp4", clip.read_bytes())}}
    client.chat.completions.create(model="pitch", messages=user(video))
    assert list(tmp_path.iterdir()) == []


def test_earlier_turns_are_shown_as_they_were(client, pitch, match_jpegs):
    history = [
        *user(*images(match_jpegs[:2]), {"type": "text", "text": "Who has the ball?"}),
        {"role": "assistant", "content": "blue"},
        *user(*images(match_jpegs[2:4]), {"type": "text", "text": "pass"}),
    ]
    answer = client.chat.completions.create(model="pitch", messages=history, max_tokens=5)
    session = StreamingSession(pitch)
    first, second = turns_of(match_jpegs[:4])
    session.step(first, question="Who has the ball?", reply="blue")
    assert answer.choices[0].message.content == session.step(second, question="pass", max_new_tokens=5).text
    assert answer.usage.prompt_tokens > 0


def test_a_second_question_needs_no_second_clip(client, pitch, match_jpegs):
    history = [
        *user(*images(match_jpegs[:2]), {"type": "text", "text": "Who has the ball?"}),
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "pass"},
    ]
    answer = client.chat.completions.create(model="pitch", messages=history, max_tokens=5)
    session = StreamingSession(pitch)
    [turn] = turns_of(match_jpegs[:2])
    session.step(turn, question="Who has the ball?", reply="blue")
    again = replace(turn, index=1, start_s=1, end_s=2)
    assert answer.choices[0].message.content == session.step(again, question="pass", max_new_tokens=5).text


OBEYED = {"max_tokens": 3, "max_completion_tokens": 3, "temperature": 0.1, "top_p": 0.9, "seed": 4}
WITHOUT_EFFECT = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "goal"},
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "safety_identifier": "a",
    "service_tier": "default",
    "user": "a",
}
REFUSED = {
    "audio": {"voice": "ash", "format": "wav"},
    "frequency_penalty": 1,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"5": 1},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "n": 2,
    "presence_penalty": 1,
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "stop": ["x"],
    "store": True,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_logprobs": 3,
    "verbosity": "low",
    "web_search_options": {},
}


def test_every_documented_parameter_of_the_client_is_tried_here():
    """Parameters that newer clients have are refused by name, like any other unknown one."""
    documented = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    tried = OBEYED.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys() | {"model", "messages", "stream_options"}
    assert documented - tried <= {"moderation", "prompt_cache_options"}, "add what is new to the lists"


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_a_parameter_that_is_not_supported_is_refused_by_name(client, match_jpegs, name, value):
    with pytest.raises(openai.BadRequestError, match=f"'?{name}'? is (supported as|not supported)"):
        client.chat.completions.create(model="pitch", messages=user(*images(match_jpegs[:2])), **{name: value})


@pytest.mark.parametrize("name", ["frames", "top_k", "moderation"])
def test_an_unknown_parameter_is_refused_by_name(client, match_jpegs, name):
    with pytest.raises(openai.BadRequestError, match=f"'{name}' is not supported; leave it out"):
        client.chat.completions.create(
            model="pitch", messages=user(*images(match_jpegs[:2])), extra_body={name: {"a": 1}}
        )


def test_parameters_that_change_no_answer_are_accepted(client, match_jpegs):
    messages = user(*images(match_jpegs[:2]))
    plain, given = (
        client.chat.completions.create(model="pitch", messages=messages, **more) for more in ({}, WITHOUT_EFFECT)
    )
    assert given.choices[0].message.content == plain.choices[0].message.content


def test_sampling_parameters_are_obeyed(client, match_jpegs):
    messages = user(*images(match_jpegs[:2]), {"type": "text", "text": "Say what happens."})

    def ask(**options):
        completion = client.chat.completions.create(model="pitch", messages=messages, **options)
        return completion.choices[0].message.content, completion.usage.completion_tokens

    assert ask(max_tokens=2)[1] == ask(max_completion_tokens=2)[1] == 2
    assert ask(temperature=2, seed=1) == ask(temperature=2, seed=1)
    assert len({ask(temperature=2, seed=seed) for seed in range(6)}) > 1
    assert len({ask(temperature=2, seed=seed, top_p=1e-6) for seed in range(6)}) == 1


def test_a_null_means_that_the_field_is_absent(locked, match_jpegs):
    names = ("stream", "stream_options", "n", "stop", "tools", "temperature", "max_tokens", "response_format")
    parts = [{**part, "text": None, "video_url": None} for part in images(match_jpegs[:2])]
    body = {"model": "pitch", "messages": user(*parts), **dict.fromkeys(names)}
    assert locked.http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_pictures_of_others_than_the_user_are_refused(locked, match_jpegs, role):
    messages = [*user(*images(match_jpegs[:2])), {"role": role, "content": images(match_jpegs[:2])}]
    body = {"model": "pitch", "messages": [*messages, *user({"type": "text", "text": "Who has the ball?"})]}
    assert "only messages of the user may have pictures" in error_of(
        locked.http.post("/v1/chat/completions", json=body)
    )


def test_a_blank_text_asks_nothing(client, match_jpegs):
    def said(*parts):
        messages = user(*images(match_jpegs[:4]), *parts)
        return client.chat.completions.create(model="pitch", messages=messages).choices[0].message.content

    assert said({"type": "text", "text": " \n"}) == said()


def test_stream_options_need_a_stream(client, match_jpegs):
    with pytest.raises(openai.BadRequestError, match="stream_options needs stream=true; leave it out"):
        client.chat.completions.create(
            model="pitch", messages=user(*images(match_jpegs[:2])), stream_options={"include_usage": True}
        )


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{}", {"content-type": "text/plain"}),
        (gzip.compress(b"{}"), {"content-type": "application/json", "content-encoding": "gzip"}),
        ("{'é'}".encode("latin-1"), {"content-type": "application/json"}),
        (b"[]", {"content-type": "application/json"}),
        (b"", {}),
    ],
    ids=["text", "gzip", "latin-1", "a list", "nothing"],
)
def test_a_body_that_is_no_json_object_is_told_what_to_send(locked, content, headers):
    response = locked.http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert "the body is not one JSON object in UTF-8; send it uncompressed" in error_of(response)


def test_an_image_url_as_a_string_gets_the_right_form(locked):
    body = {"model": "pitch", "messages": user({"type": "image_url", "image_url": "data:image/jpeg;base64,AA"})}
    assert 'give {"url"' in error_of(locked.http.post("/v1/chat/completions", json=body))


def picture(kind, **options):
    buffer = io.BytesIO()
    mode = "RGB" if kind == "JPEG" else "RGBA"
    Image.new(mode, (64, 48), "red").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "url",
    [
        data_url("image/png", picture("PNG")),
        data_url("image/webp", picture("WEBP", lossless=True)),
        data_url("image/jpeg;name=a,b", picture("JPEG")),
        "data:image/png;base64," + base64.urlsafe_b64encode(picture("PNG")).decode().rstrip("="),
        "data:image/png;base64," + base64.encodebytes(picture("PNG")).decode(),
    ],
    ids=["png", "webp", "comma", "url-safe", "line breaks"],
)
def test_every_form_of_data_url_is_accepted(client, url):
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    assert client.chat.completions.create(model="pitch", messages=user(*parts)).choices[0].finish_reason == "stop"


def test_a_client_that_leaves_frees_its_place(serving, match_jpegs):
    body = {"model": "pitch", "messages": user(*images(match_jpegs[:2]))}
    with serving(limits={"max_clips": 1}) as server, held(server, match_jpegs[:2]):
        for streams in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                server.http.post("/v1/chat/completions", json=body | {"stream": streams}, timeout=0.5)
            wait_until_free(server)


def wait_until_free(server):
    deadline_s = time.monotonic() + PATIENCE_S
    while server.app.state.manager._num_clips:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_client_that_leaves_between_two_lines_frees_its_place_before_the_clip_is_over(serving):
    clip = {"type": "video_url", "video_url": {"url": data_url("video/mp4", MATCH.read_bytes())}}
    body = {"model": "pitch", "messages": user(clip), "stream": True}
    with serving(limits={"max_clips": 1}) as server:
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(line for line in response.iter_lines() if "pass" in line)
        wait_until_free(server)
        assert "streamingvlm_clips_total 0.0" in server.http.get("/metrics").text


def test_a_model_is_found_by_its_name(client):
    assert client.models.retrieve("pitch").id == "pitch"
    with pytest.raises(openai.NotFoundError, match="there is no model 'x' here"):
        client.models.retrieve("x")


def test_the_page_answers_head(locked):
    assert locked.http.head("/").status_code == 200
