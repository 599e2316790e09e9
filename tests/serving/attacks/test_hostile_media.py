"""Pictures and clips that cost far more than their bytes: each is refused in one line beside an undisturbed session."""

import base64
import io
import struct

import pytest
from PIL import Image
from running_server import MATCH, error_of
from undisturbed_session import undisturbed

from streamingvlm.errors import VideoError
from streamingvlm.serving.picture_pool import PicturePool
from streamingvlm.video import open_video

pytestmark = pytest.mark.attacks


def jpeg(size=(64, 64), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def many_scans(num_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = jpeg((2000, 2000), progressive=True)
    start = whole.rfind(b"\xff\xda")
    return whole[:start] + whole[start : start + 12] * num_scans + whole[-2:]


def gif(width: int, height: int) -> bytes:
    """A GIF that announces a size and holds one byte of picture."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def ask_about(server, kind: str, data: bytes):
    url = f"data:{'image/gif' if kind == 'image_url' else 'video/mp4'};base64,{base64.b64encode(data).decode()}"
    part = {"type": kind, kind: {"url": url}}
    return server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})


def test_costly_media_are_refused_beside_a_session(server, pitch, match_jpegs):
    with undisturbed(server, pitch, match_jpegs):
        session = server.open()
        pushed = server.http.post(f"/v1/sessions/{session}/frames", content=many_scans(4000))
        assert pushed.status_code == 400 and "scans" in error_of(pushed)
        for size in ((16000, 16000), (60000, 60000), (5000, 3000)):
            refused = ask_about(server, "image_url", gif(*size))
            assert refused.status_code == 400 and "pixels" in error_of(refused)
        for playlist in (b"ffconcat version 1.0\nfile clip\n", b"#EXTM3U\n#EXTINF:1,\nclip\n#EXT-X-ENDLIST\n"):
            refused = ask_about(server, "video_url", playlist)
            assert refused.status_code == 400 and "not a video" in error_of(refused)
        assert server.http.post(f"/v1/sessions/{session}/frames", content=jpeg()).json()["accepted"]


def test_damaged_exif_is_no_fault_of_the_picture(server):
    damaged = jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    assert server.http.post(f"/v1/sessions/{server.open()}/frames", content=damaged).status_code == 202


def test_a_killed_decoder_is_one_refused_picture():
    pool = PicturePool(1, deadline_s=60)
    assert len(pool.open(jpeg(), ("JPEG",), 10**6)) == 8 + 64 * 64 * 3
    impatient = PicturePool(1, deadline_s=0)
    with pytest.raises(VideoError, match="over 0 s"):
        impatient.open(jpeg((2000, 2000)), ("JPEG",), 10**7)
    process = pool._idle.get()
    process._process.kill()
    process._process.wait()
    pool._idle.put(process)
    with pytest.raises(VideoError, match="ended its decoder"):
        pool.open(jpeg(), ("JPEG",), 10**6)
    assert len(pool.open(jpeg(), ("JPEG",), 10**6)) == 8 + 64 * 64 * 3


@pytest.mark.parametrize("head", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("name", ["list.m3u8", "match.mp4"])
def test_a_playlist_in_the_folder_opens_no_other_file(tmp_path, head, name):
    path = tmp_path / name
    path.write_text(head.format(MATCH))
    with pytest.raises(VideoError, match="not a video"):
        open_video(path)


def test_made_up_methods_share_one_label(server):
    for number in range(20):
        server.http.request(f"MADEUP{number}", "/health")
    exposition = server.http.get("/metrics").text
    assert "MADEUP" not in exposition and 'method="other"' in exposition
