"""Speech recognition of a video's audio track by faster-whisper.

Each transcript is cached as JSON in a format that `streamingvlm.data.transcript_files` reads, so an interrupted run
does not transcribe a video twice. Audio is read in pieces, so memory does not grow with the length of the video.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamingvlm.atomic import write_json
from streamingvlm.config import at_least
from streamingvlm.data.transcript import Cue
from streamingvlm.data.transcript_files import read_cues, segment_cue
from streamingvlm.errors import ConfigError

log = logging.getLogger(__name__)

Transcriber = Callable[[np.ndarray], Iterable[Any]]
"""Maps float32 samples, mono at 16 kHz, to segments with start, end, text and words, as faster-whisper does."""


@dataclass(frozen=True)
class AsrConfig:
    """Settings of faster-whisper.

    model: a size that faster-whisper downloads (large-v3), or the folder of a converted model.
    device, compute_type: passed to faster-whisper. language: null detects it.
    """

    model: str = "large-v3"
    device: str = "auto"
    compute_type: str = "default"
    language: str | None = None
    beam_size: int = 5

    def __post_init__(self):
        if not self.model:
            raise ConfigError("asr.model is empty; give a size (large-v3) or the folder of a converted model")
        at_least("asr.beam_size", self.beam_size, 1, "1 is greedy search")


def check_installed():
    """Raise ConfigError if faster-whisper is not installed."""
    if importlib.util.find_spec("faster_whisper") is None:
        raise ConfigError('asr.enabled=true needs faster-whisper; run: pip install "streamingvlm[asr]"')


def load_transcriber(config: AsrConfig) -> Transcriber:
    """Load faster-whisper. Raises ConfigError if it is not installed or the model cannot be loaded."""
    check_installed()
    from faster_whisper import WhisperModel

    try:
        model = WhisperModel(config.model, device=config.device, compute_type=config.compute_type)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"asr.model={config.model} cannot be loaded ({reason}); give a size (large-v3) or a folder"
        ) from error

    def transcribe(samples: np.ndarray) -> Iterable[Any]:
        segments, _ = model.transcribe(
            samples, language=config.language, beam_size=config.beam_size, word_timestamps=True, vad_filter=True
        )
        return segments

    return transcribe


class SpeechRecogniser:
    """Transcribes videos and caches the transcripts in a folder.

    transcriber: None loads faster-whisper when the first video is transcribed.

    Raises ConfigError if faster-whisper is needed and not installed.
    """

    def __init__(self, config: AsrConfig, folder: str | Path, transcriber: Transcriber | None = None):
        self._config = config
        self._folder = Path(folder)
        self._transcriber = transcriber
        if transcriber is None:
            check_installed()

    def transcribe(self, video: Path) -> list[Cue]:
        """Return the transcript of a video, from the cache if it is there.

        Raises VideoError if it has no audio, and ConfigError for what would fail with every video: the model cannot be
        loaded, or the folder cannot be written.
        """
        path = self._cache_path(video)
        if not path.exists():
            log.info("transcribing %s", video)
            self._save(path, {"segments": list(self._segments(video))})
        return read_cues(path)

    def _segments(self, video: Path) -> Iterator[dict[str, Any]]:
        from streamingvlm.video.audio import read_audio  # imports torch, which a check of the settings does not need

        if self._transcriber is None:
            self._transcriber = load_transcriber(self._config)
        for offset_s, samples in read_audio(video):
            for segment in self._transcriber(samples):
                yield _shifted(segment_cue(segment, f"{video}: speech recognition"), offset_s)

    def _save(self, path: Path, document: dict[str, Any]):
        try:
            write_json(path, document)
        except OSError as error:
            raise ConfigError(
                f"transcripts cannot be written to {self._folder} ({error.strerror}); free disk space there, or give "
                "another work_folder"
            ) from error

    def _cache_path(self, video: Path) -> Path:
        """Return the file for a video's transcript; its name hashes the video's path, size, mtime and the settings."""
        stat = video.stat()
        key = [str(video), stat.st_size, stat.st_mtime_ns, asdict(self._config)]
        return self._folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


def _shifted(cue: Cue, offset_s: float) -> dict[str, Any]:
    """Return the cue as a WhisperX segment, with ``offset_s`` added to every time."""

    def shifted(time_s: float | None) -> float | None:
        return None if time_s is None else float(time_s) + offset_s

    return {
        "start": shifted(cue.start_s),
        "end": shifted(cue.end_s),
        "text": "".join(word.text for word in cue.words),
        "words": [{"word": w.text, "start": shifted(w.start_s), "end": shifted(w.end_s)} for w in cue.words],
    }
