"""Small files in the layouts of published data sets and recognisers, and small videos that they are about."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from streamingvlm.data.transcript import Word

AUDIO_RATE = 16000


def steady_words(duration_s: float, *, words_per_s: float = 2.5, start_s: float = 0.0) -> list[Word]:
    """Numbered words at a steady pace, each half as long as the time it has."""
    step_s = 1 / words_per_s
    times_s = [start_s + number * step_s for number in range(int(duration_s * words_per_s))]
    return [Word(round(at_s, 3), round(at_s + step_s / 2, 3), f"w{number}.") for number, at_s in enumerate(times_s)]


def whisperx(words: Sequence[Word], *, words_a_segment: int = 8) -> dict:
    """WhisperX's document; faster-whisper's segments have the same fields."""
    pieces = [words[first : first + words_a_segment] for first in range(0, len(words), words_a_segment)]
    return {
        "segments": [
            {
                "start": piece[0].start_s,
                "end": piece[-1].end_s,
                "text": " " + " ".join(word.text for word in piece),
                "words": [{"word": w.text, "start": w.start_s, "end": w.end_s, "score": 0.9} for w in piece],
            }
            for piece in pieces
        ],
        "language": "en",
    }


def conversation(video: str, words: Sequence[Word], *, start_s=None, end_s=None, questions=None, **user) -> list[dict]:
    """One line of LiveCC or Inf-Streams-Train."""
    part = {name: value for name, value in (("video_start", start_s), ("video_end", end_s)) if value is not None}
    said = {"type": "text_stream", "text_stream": [[w.start_s, w.end_s, w.text] for w in words]}
    if questions is not None:
        said["qa_stream"] = questions
    return [
        {
            "role": "user",
            "content": [{"type": "video", "video": video, **part}, {"type": "text", "text": "", **user}],
        },
        {"role": "assistant", "content": [said]},
    ]


def write_lines(path: Path, lines: Sequence[object], *, index: str | None = None) -> Path:
    """JSONL; ``index`` puts the offset of each line "inside", as the last line, or "beside", in a file of its own."""
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    offsets = [sum(len(line) + 1 for line in encoded[:number]) for number in range(len(encoded))]
    if index == "inside":
        encoded.append(json.dumps(offsets).encode())
    if index == "beside":
        path.with_name(path.name.replace("_with_seeks", "_seeks")).write_text(json.dumps(offsets))
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def webvtt(cues: Sequence[tuple[float, float, str]]) -> str:
    """WebVTT with a header, a note and identifiers."""
    blocks = [f"{number}\n{_stamp(a)} --> {_stamp(b)}\n{text}" for number, (a, b, text) in enumerate(cues)]
    return "\n\n".join(["WEBVTT", "NOTE made by hand", *blocks]) + "\n"


def subrip(cues: Sequence[tuple[float, float, str]]) -> str:
    """SubRip."""
    return webvtt(cues).partition("made by hand")[2].strip().replace(".", ",") + "\n"


def _stamp(time_s: float) -> str:
    minutes, seconds = divmod(time_s, 60)
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{seconds:06.3f}"


def write_video(
    path: Path,
    duration_s: float,
    *,
    fps: int = 5,
    size: tuple[int, int] = (64, 48),
    tone_at_s: Sequence[float] | None = None,
    sound_from_s: float = 0.0,
    muxer_options: dict[str, str] | None = None,
) -> Path:
    """A clip that grows lighter; with ``tone_at_s`` sound too, silent but for a tone in these seconds."""
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": str(fps * 5)})
        stream.width, stream.height = size
        sound = container.add_stream("aac", rate=AUDIO_RATE, layout="mono") if tone_at_s is not None else None
        for number in range(round(duration_s * fps)):
            shade = np.full((size[1], size[0], 3), number * 5 % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            _write_tones(container, sound, duration_s, tone_at_s, sound_from_s)
    return path


def _write_tones(container, stream, duration_s, tone_at_s, sound_from_s):
    first = round(sound_from_s * AUDIO_RATE)
    time_s = np.arange(first, round(duration_s * AUDIO_RATE)) / AUDIO_RATE
    is_loud = np.isin(np.floor(time_s), list(tone_at_s))
    wave = (0.5 * np.sin(2 * np.pi * 440 * time_s) * is_loud).astype(np.float32)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, first + start, Fraction(1, AUDIO_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def inf_streams_line(video: str, pieces: Sequence[tuple[float, float, str]]) -> dict:
    """One line of Inf-Streams-Eval, of transcripts or of segments."""
    return {"video": video, "title": video.partition(".")[0], "content": [list(piece) for piece in pieces]}


def candidate_line(video: str, pieces: Sequence[tuple[float, float, str]], *, field: str = "response") -> dict:
    """One line of a candidate's commentary on Inf-Streams-Eval."""
    items = [{"start_time": start_s, "end_time": end_s, field: text} for start_s, end_s, text in pieces]
    return {"video": video, "chunk_start": pieces[0][0], "chunk_end": pieces[-1][1], "items": items}


def livesports_row(video: str, event_id: int, begin_s: float, end_s: float, said: str, before: str = "") -> dict:
    """One row of LiveSports_3K_CC."""
    return {
        "video": video,
        "video_id": video.partition(".")[0],
        "event_id": event_id,
        "begin": begin_s,
        "end": end_s,
        "event_title": f"event {event_id}",
        "preasr_text": before,
        "event_asr_text": said,
    }
