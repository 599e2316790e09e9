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


def ovo_bench_list() -> list[dict]:
    """OVO-Bench: an entry or two of each kind, of videos a.mp4 and b.mp4 that last at least six seconds."""
    choice = {"question": "Who has the ball?", "answer": "red", "options": ["red", "blue"], "gt": 0}
    steps = [{"realtime": 2, "step": "take the ball", "type": 1}, {"realtime": 5.0, "step": "score", "type": 0}]
    return [
        {"id": 0, "task": "EPM", "video": "clips/a.mp4", "realtime": 5, **choice},
        {"id": 7, "task": "HLD", "video": "clips/b.mp4", "realtime": 4, **choice, "gt": 1},
        {"id": 8, "task": "OCR", "video": "clips/a.mp4", "realtime": 2.04, **choice},
        {"id": 9, "task": "OJR", "video": "clips/b.mp4", "realtime": 0.03, **choice},
        {
            "id": 20,
            "task": "CRR",
            "video": "clips/a.mp4",
            "question": "What does the keeper do?",
            "answer": "She saves it.",
            "ask_time": 1,
            "clue_time": 3,
            "test_info": [{"realtime": 1, "type": 0}, {"realtime": 4, "type": 1}],
        },
        {
            "id": 21,
            "task": "SSR",
            "video": "clips/b.mp4",
            "tutorial": "Football",
            "all_steps": ["take the ball", "score"],
            "start_time": [1, 4],
            "end_time": [2, 5],
            "test_info": steps,
        },
        {
            "id": 22,
            "task": "REC",
            "video": "clips/b.mp4",
            "activity": "kicking the ball",
            "start_times": [1],
            "end_times": [2],
            "test_info": [{"realtime": 2, "count": 1}, {"realtime": 6.0, "count": 3}],
        },
    ]


def streaming_bench_list() -> list[dict]:
    """StreamingBench's questions_real.json: a video comes back in several entries, an hour may be missing."""
    options = ["A. Red.", "B. Blue.", "C. Green.", "D. Nobody."]
    question = {"question": "Who has the ball right now?", "options": options, "required_ability": "working memory"}
    asked = [("Object Recognition", "00:00:03", "A"), ("Counting", "0:00:05", "B"), ("Counting", "00:02", "D")]
    questions = [
        {"task_type": task, "time_stamp": stamp, "answer": answer, **question} for task, stamp, answer in asked
    ]
    return [
        {
            "time": "[0:00:00 - 0:00:05]",
            "questions": questions[:2],
            "video_categories": "football",
            "video_path": "./videos/sample_1_real.mp4",
        },
        {"time": "[0:00:05 - 0:00:06]", "questions": questions[2:], "video_path": "./videos/sample_1_real.mp4"},
    ]


def streaming_bench_table() -> str:
    """StreamingBench's Real_Time_Visual_Understanding.csv: options as a list in Python's notation."""
    header = "question_id,task_type,question,time_stamp,answer,options,frames_required,temporal_clue_type"
    options = "\"['A. Red.', 'B. Blue.', 'C. It\\'s green.', 'D. Nobody.']\""
    rows = [
        f"Real-Time Visual Understanding_sample_{sample}_{number},Counting,Who is it?,{stamp},B,{options},single,Prior"
        for sample, number, stamp in ((1, 1, "00:00:03"), (1, 2, "00:01:05"), (2, 1, "1:00:00"))
    ]
    return "\n".join([header, *rows]) + "\n"
