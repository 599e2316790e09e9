"""Captioned copies, read back by FFmpeg: every frame, every second of sound, and what is written on the picture."""

from fractions import Fraction

import av
import numpy as np
import pytest

from streamingvlm.video.captioned import CaptionedVideo


def write_film(path, *, codec="libx264", sound="aac", rate=25, seconds=4, rotation=None, size=(160, 120)):
    """A grey film with a tone; the picture's brightness is its number."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec, rate=rate)
        picture.width, picture.height, picture.pix_fmt = *size, "yuv420p"
        if rotation:
            picture.set_display_rotation(rotation)
        tone = container.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for number in range(round(rate * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 30 + number, np.uint8))
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if tone:
            for first in range(0, 48000 * seconds, 960):
                wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(first, first + 960) / 48000)
                kind = "fltp" if sound == "aac" else "s16"
                samples = np.stack([wave, wave]).astype(np.float32)
                if kind == "s16":
                    samples = (samples * 32767).astype(np.int16).T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=kind, layout="stereo")
                frame.sample_rate, frame.pts = 48000, first
                container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return path


def copy(film, path, captions, words, *, start_s=0.0):
    """Copy a second for each of the words."""
    video = CaptionedVideo(film, captions=captions, start_s=start_s)
    turns = [video.fragment(start_s + k, start_s + k + 1, text) for k, text in enumerate(words)]
    path.write_bytes(video.head() + b"".join(turns))
    video.close()
    return path


def frames_of(path):
    """Times and pictures [H, W] of a file."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def sound_of(path):
    """The first channel, from the first sample."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize("codec, sound, suffix", [("libx264", "aac", "mp4"), ("mpeg4", "pcm_s16le", "mkv")])
@pytest.mark.parametrize("captions", ["burned", "track"])
def test_every_frame_and_all_the_sound_are_kept(codec, sound, suffix, captions, tmp_path):
    film = write_film(tmp_path / f"film.{suffix}", codec=codec, sound=sound, rate=Fraction(24000, 1001))
    path = copy(film, tmp_path / "copy.mp4", captions, ["one", "two", "", "two"])
    before, after = frames_of(film), frames_of(path)
    assert len(after) == len(before)
    times_s, copied_s = (np.array([time_s for time_s, _ in frames]) for frames in (before, after))
    np.testing.assert_allclose(copied_s - copied_s[0], times_s - times_s[0], atol=0.002)
    # The upper half has no caption.
    levels = [[picture[:60].mean() for _, picture in frames] for frames in (before, after)]
    np.testing.assert_allclose(*levels, atol=3)
    tone = sound_of(path)
    assert len(tone) / 48000 == pytest.approx(4, abs=0.1)
    loud = np.abs(tone[4800 : 4800 + 480 * 350]).reshape(-1, 480).max(1)
    assert loud.min() > 0.2, "no gap between turns"


def test_a_burned_caption_is_shown_in_its_turn_alone(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    path = copy(
        film, tmp_path / "copy.mp4", "burned", ["", "a goal for red, and it was a long, long way to it", "", ""]
    )
    contrasts = [np.ptp(picture[60:].astype(int)) for _, picture in frames_of(path)]
    assert min(contrasts[25:50]) > 100 > max(contrasts[:25] + contrasts[50:])


def test_a_track_has_the_words_with_their_times(tmp_path):
    film = write_film(tmp_path / "film.mp4", sound=None)
    words = ["one", "<two> & ü", "", "two"]
    path = copy(film, tmp_path / "copy.mp4", "track", words)
    with av.open(str(path)) as container:
        text = container.streams.subtitles[0]
        packets = [packet for packet in container.demux(text) if packet.size]
    first_s = frames_of(path)[0][0]
    assert [bytes(packet)[2:].decode() for packet in packets] == words
    starts_s = [float(packet.pts * packet.time_base) - first_s for packet in packets]
    assert starts_s == pytest.approx([0, 1, 2, 3], abs=0.005)


@pytest.mark.parametrize("captions", ["burned", "track"])
def test_a_rotated_film_is_displayed_upright(captions, tmp_path):
    film = write_film(tmp_path / "film.mp4", rotation=90, sound=None, seconds=1)
    path = copy(film, tmp_path / "copy.mp4", captions, ["hello"])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    shape = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    assert shape == (120, 160)


def test_a_copy_may_begin_later_and_goes_on_after_a_stop(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    whole = copy(film, tmp_path / "whole.mp4", "burned", ["one", "two", "three"], start_s=1.0)
    assert [frames[0] for frames in frames_of(whole)[:2]] == [0.0, 0.04]
    assert frames_of(whole)[0][1][:60].mean() == pytest.approx(30 + 25, abs=3)
    video = CaptionedVideo(film, captions="burned", start_s=1.0)
    stopped = video.head() + video.fragment(1.0, 2.0, "one")
    video.close()
    video = CaptionedVideo(film, captions="burned", start_s=1.0)
    stopped += video.fragment(2.0, 3.0, "two") + video.fragment(3.0, 4.0, "three")
    video.close()
    assert stopped == whole.read_bytes()


def test_a_cut_off_copy_can_be_played(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    path = copy(film, tmp_path / "copy.mp4", "burned", ["one", "two", "three"])
    path.write_bytes(path.read_bytes()[:-100])
    assert len(frames_of(path)) >= 50
