"""Frames whose pixels are not square are shown as people see them: a circle is a circle through every door."""

from fractions import Fraction

import av
import numpy as np
import pytest

from streamingvlm.config import LiveConfig
from streamingvlm.video import open_source, open_video
from streamingvlm.video.orientation import displayed_size
from streamingvlm.video.probe import probe_video

PAL_WIDE = Fraction(64, 45)


def disc(width, height, aspect):
    """Draw a white disc that is round where pixels have this aspect."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5 - width / 2) * float(aspect)) ** 2 + (y + 0.5 - height / 2) ** 2 < (0.35 * height) ** 2
    return np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def write(path, *, aspects=(PAL_WIDE,), size=(360, 288), codec="libx264", rotation=None, seconds=2):
    """Write a clip of 5 frames a second whose codec, or container, states the aspect of a pixel; or several in turn."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspects[0]
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(5 * seconds):
            frame = av.VideoFrame.from_ndarray(disc(*size, aspects[0]), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sides_of_disc(frame):
    """Return height and width of what is white in a frame [3, H, W]."""
    white = frame.float().mean(0) > 128
    return int(white.any(1).sum()), int(white.any(0).sum())


def assert_round(frame):
    height, width = sides_of_disc(frame)
    assert abs(height - width) <= 2, f"the disc is {width}x{height}"


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "h264.mov"])
def test_a_circle_is_a_circle_in_every_container(tmp_path, name):
    path = write(tmp_path / name)
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (512, 288)
        turns = list(video)
    assert {tuple(turn.frames.shape[2:]) for turn in turns} == {(288, 512)}
    assert_round(turns[-1].frames[-1])
    probe = probe_video(path)
    assert (probe.width, probe.height) == (512, 288)


def test_both_decoders_and_a_live_source_show_the_same_shape(tmp_path):
    path = write(tmp_path / "clip.mp4")
    pytest.importorskip("decord", reason="decord has wheels for Linux on x86-64 alone")
    by_pyav, by_decord, live = (
        next(iter(source))
        for source in (
            open_video(path),
            open_video(path, decoder="decord"),
            open_source(path, live=LiveConfig(policy="coalesce")),
        )
    )
    assert (by_pyav.frames.float() - by_decord.frames.float()).abs().max() <= 1
    assert live.frames.equal(by_pyav.frames)


def test_a_phone_that_stands_upright_has_its_pixels_turned_as_well(tmp_path):
    path = write(tmp_path / "phone.mp4", rotation=90)
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (288, 512)
        assert_round(next(video).frames[0])
    pytest.importorskip("decord", reason="decord has wheels for Linux on x86-64 alone")
    assert_round(next(open_video(path, decoder="decord")).frames[0])


def test_high_pixels_stretch_the_height(tmp_path):
    with open_video(write(tmp_path / "ntsc.mp4", aspects=(Fraction(8, 9),), size=(360, 240))) as video:
        assert (video.info.width, video.info.height) == (360, 270)
        assert_round(next(video).frames[0])


def test_a_stream_that_changes_its_aspect_is_shown_in_each(tmp_path):
    parts = [write(tmp_path / f"{i}.ts", aspects=(aspect,)) for i, aspect in enumerate((PAL_WIDE, Fraction(16, 15)))]
    joined = tmp_path / "broadcast.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(joined) as video:
        shapes = [tuple(turn.frames.shape[2:]) for turn in video]
    assert shapes[0] == (288, 512)
    assert shapes[-1] == (288, 384)
    assert video.skipped.num_resolution_changes == 1


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(None, (576, 720)), (Fraction(0), (576, 720)), (Fraction(1, 300), (576, 720)), (Fraction(4320, 4319), (576, 720))],
)
def test_no_aspect_or_an_absurd_one_leaves_a_frame_as_it_is(aspect, size):
    assert displayed_size(576, 720, aspect) == size
