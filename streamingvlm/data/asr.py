"""Speech recognition of a video's own sound by faster-whisper.

A transcript, once made, is kept as JSON in the layout that `streamingvlm.data.formats` reads, so that a run that was
broken off does not listen twice. The sound is read in pieces: memory does not grow with the length of the video.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamingvlm.atomic import write_json
from streamingvlm.config import at_least
from streamingvlm.data.formats import read_cues, segment_cue
from streamingvlm.data.transcript import Cue
from streamingvlm.errors import ConfigError, DataError
from streamingvlm.video.audio import read_audio

log = logging.getLogger(__name__)

Transcriber = Callable[[np.ndarray], Iterable[Any]]
"""Turns float32 samples, mono at 16 kHz, into segments with start, end, text and words, as faster-whisper's."""


@dataclass(frozen=True)
class AsrConfig:
    """model: a size that faster-whisper fetches (large-v3), or a folder that holds a converted model.

    device, compute_type: as faster-whisper knows them. language: null lets the model find out.
    """

    model: str = "large-v3"
    device: str = "auto"
    compute_type: str = "default"
    language: str | None = None
    beam_size: int = 5

    def __post_init__(self):
        if not self.model:
            raise ConfigError("asr.model is empty; give a size (large-v3) or the folder of a converted model")
        at_least("asr.beam_size", self.beam_size, 1, "1 is greedy")


def load_transcriber(config: AsrConfig) -> Transcriber:
    """Load faster-whisper; DataError where it is not installed or the model cannot be loaded."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise DataError('faster-whisper is not installed; run: pip install "streamingvlm[asr]"') from error
    try:
        model = WhisperModel(config.model, device=config.device, compute_type=config.compute_type)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"asr.model={config.model} cannot be loaded ({reason}); give a size or a folder") from error

    def transcribe(samples: np.ndarray) -> Iterable[Any]:
        found, _ = model.transcribe(
            samples, language=config.language, beam_size=config.beam_size, word_timestamps=True, vad_filter=True
        )
        return found

    return transcribe


class SpeechRecogniser:
    """Transcripts of videos by their sound, kept in a folder.

    transcriber: null loads faster-whisper when the first video is listened to.
    """

    def __init__(self, config: AsrConfig, folder: str | Path, transcriber: Transcriber | None = None):
        self._config = config
        self._folder = Path(folder)
        self._transcriber = transcriber

    def cues(self, video: Path) -> list[Cue]:
        """Return the transcript of a video, made now if it was not made before. Raises VideoError without sound."""
        kept = self._path(video)
        if not kept.exists():
            log.info("listening to %s", video)
            self._keep(kept, {"segments": list(self._segments(video))})
        return read_cues(kept)

    def _segments(self, video: Path) -> Iterator[dict[str, Any]]:
        if self._transcriber is None:
            self._transcriber = load_transcriber(self._config)
        for offset_s, samples in read_audio(video):
            for segment in self._transcriber(samples):
                yield _shifted(segment_cue(segment, f"{video}: speech recognition"), offset_s)

    def _keep(self, path: Path, document: dict[str, Any]):
        try:
            write_json(path, document)
        except OSError as error:
            raise DataError(f"{self._folder} cannot keep transcripts ({error.strerror}); make room there") from error

    def _path(self, video: Path) -> Path:
        """Named by the file as it is now, and by what decides about its transcript."""
        state = video.stat()
        facts = [str(video), state.st_size, state.st_mtime_ns, asdict(self._config)]
        return self._folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"


def _shifted(cue: Cue, offset_s: float) -> dict[str, Any]:
    """A segment of WhisperX JSON, on the clock of the whole sound."""

    def later(time_s: float | None) -> float | None:
        return None if time_s is None else float(time_s) + offset_s

    return {
        "start": later(cue.start_s),
        "end": later(cue.end_s),
        "text": "".join(word.text for word in cue.words),
        "words": [{"word": w.text, "start": later(w.start_s), "end": later(w.end_s)} for w in cue.words],
    }
