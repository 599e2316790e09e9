"""Speech recognition with a transcriber that detects tones, on real files with audio."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from published_layouts import write_video

from streamingvlm.data.asr import AsrConfig, SpeechRecogniser, load_transcriber
from streamingvlm.data.transcript import repair
from streamingvlm.errors import ConfigError, VideoError
from streamingvlm.video.audio import SAMPLE_RATE


@dataclass
class AsrWord:
    """A word as faster-whisper yields it."""

    start: float
    end: float
    word: str
    probability: float = 0.9


@dataclass
class AsrSegment:
    """A segment as faster-whisper yields it."""

    start: float
    end: float
    text: str
    words: list[AsrWord] | None


class ToneTranscriber:
    """Returns the word "tone" for each loud run, in steps of a tenth of a second, and counts its calls."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, samples):
        self.num_calls += 1
        block = SAMPLE_RATE // 10
        loud = np.abs(samples[: len(samples) // block * block]).reshape(-1, block).mean(1) > 0.1
        edges = np.flatnonzero(np.diff(np.r_[0, loud.astype(int), 0])).reshape(-1, 2) / 10
        for start_s, end_s in edges:
            yield AsrSegment(start_s, end_s, " tone", [AsrWord(np.float64(start_s), np.float64(end_s), " tone")])


@pytest.fixture
def transcriber():
    return ToneTranscriber()


@pytest.fixture
def recogniser(tmp_path, transcriber):
    return SpeechRecogniser(AsrConfig(), tmp_path / "kept", transcriber)


def test_words_have_the_times_of_their_audio(tmp_path, recogniser):
    video = write_video(tmp_path / "clip.mp4", 12, tone_at_s=[2, 3, 7])
    words = repair(recogniser.transcribe(video))[0].words
    assert [word.text for word in words] == ["tone", "tone"]
    assert [word.start_s for word in words] == pytest.approx([2.0, 7.0], abs=0.15)
    assert [word.end_s for word in words] == pytest.approx([4.0, 8.0], abs=0.15)


def test_a_video_is_transcribed_once_until_it_changes(tmp_path, recogniser, transcriber):
    video = write_video(tmp_path / "clip.mp4", 3, tone_at_s=[1])
    first = recogniser.transcribe(video)
    assert SpeechRecogniser(AsrConfig(), tmp_path / "kept", transcriber).transcribe(video) == first
    assert transcriber.num_calls == 1
    SpeechRecogniser(AsrConfig(model="small"), tmp_path / "kept", transcriber).transcribe(video)
    assert transcriber.num_calls == 2
    write_video(video, 4, tone_at_s=[1, 2])
    assert recogniser.transcribe(video) != first
    assert transcriber.num_calls == 3


def test_times_count_from_the_start_of_the_video_in_every_piece(tmp_path, recogniser, monkeypatch):
    video = write_video(tmp_path / "clip.mp4", 40, tone_at_s=[5, 25, 35])
    monkeypatch.setattr("streamingvlm.video.audio.read_audio.__kwdefaults__", {"piece_s": 10.0})
    words = repair(recogniser.transcribe(video))[0].words
    assert [round(word.start_s) for word in words] == [5, 25, 35]


def test_a_partial_transcript_is_not_cached(tmp_path):
    def interrupted(samples):
        yield AsrSegment(0.0, 1.0, " a", None)
        raise KeyboardInterrupt

    video = write_video(tmp_path / "clip.mp4", 2, tone_at_s=[1])
    with pytest.raises(KeyboardInterrupt):
        SpeechRecogniser(AsrConfig(), tmp_path / "kept", interrupted).transcribe(video)
    assert not (tmp_path / "kept").exists()


def test_a_video_without_audio_is_an_error(tmp_path, recogniser):
    with pytest.raises(VideoError, match="has no audio"):
        recogniser.transcribe(write_video(tmp_path / "clip.mp4", 2))


def test_without_faster_whisper_the_error_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ConfigError, match=r"pip install \"streamingvlm\[asr\]\""):
        load_transcriber(AsrConfig())
    with pytest.raises(ConfigError, match=r"pip install \"streamingvlm\[asr\]\""):
        SpeechRecogniser(AsrConfig(), tmp_path)


def test_a_model_must_be_named():
    with pytest.raises(ConfigError, match=r"asr\.model"):
        AsrConfig(model="")


def test_a_recogniser_that_writes_pieces_gives_whole_words_from_the_cache_too(tmp_path):
    def pieces(samples):
        texts = [" It's", " 3", ".5", " at", " 50", "%"]
        words = [AsrWord(n * 0.4, n * 0.4 + 0.4, text) for n, text in enumerate(texts)]
        yield AsrSegment(0.0, 2.4, "".join(texts), words)

    video = write_video(tmp_path / "clip.mp4", 3, tone_at_s=[1])
    recogniser = SpeechRecogniser(AsrConfig(), tmp_path / "kept", pieces)
    first, second = (repair(recogniser.transcribe(video))[0] for _ in range(2))
    assert first == second
    assert first.lines(start_s=0.0, num_turns=3) == ["It's", "3.5 at", "50%"]


def test_what_fails_for_every_video_is_not_an_error_of_one(tmp_path):
    (tmp_path / "kept").touch()
    video = write_video(tmp_path / "clip.mp4", 2, tone_at_s=[1])
    with pytest.raises(ConfigError, match="give another work_folder"):
        SpeechRecogniser(AsrConfig(), tmp_path / "kept", ToneTranscriber()).transcribe(video)
