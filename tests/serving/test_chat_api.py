"""One-shot clips, asked for by OpenAI's own client."""

import base64
import threading
import time

import openai
import pytest
from running_server import KEY, MATCH, error_of, held

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
        ([{"type": "image_url", "image_url": {"url": data_url("image/jpeg", b"hello")}}], "no JPEG"),
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
