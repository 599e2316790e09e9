"""Sixty transcripts: twelve kinds of files in five languages, each word once, in order, in its own second."""

import json
from itertools import pairwise

import pytest

from streamingvlm.data.conversations import parse_conversation
from streamingvlm.data.transcript import repair, turn_of
from streamingvlm.data.transcript_files import read_cues

SAID = {
    "English": "It's 3.5 at 50% says d'avoir twenty-one",
    "French": "L'arbitre siffle, c'est 2-1 aujourd'hui !",
    "Chinese": "红 队 进 球， 领 先 比 赛。",
    "Japanese": "レ ッ ド が ゴ ー ル を 決 め た。",
    "Thai": "แด ง ได้ ป ร ะ ตู แล้ ว",
}
PIECES = {"It's": ["It", "'s"], "3.5": ["3", ".5"], "50%": ["50", "%"], "d'avoir": ["d", "'avoir"]}
BLANK = {language: "" if language in ("Chinese", "Japanese", "Thai") else " " for language in SAID}
STEP_S = 0.7


def timed(words):
    return [(round(n * STEP_S, 3), round((n + 1) * STEP_S, 3), word) for n, word in enumerate(words)]


def whisper_pieces(words, blank):
    """faster-whisper: pieces with their blanks; a word of two has the time of both."""
    for start_s, end_s, word in words:
        parts = PIECES.get(word, [word])
        for number, part in enumerate(parts):
            step_s = (end_s - start_s) / len(parts)
            yield {
                "word": part if number else blank + part,
                "start": start_s + number * step_s,
                "end": start_s + (number + 1) * step_s,
            }


def segments(items, text, **fields):
    return {"segments": [{"start": items[0]["start"], "end": items[-1]["end"], "text": text, "words": items, **fields}]}


def plain(words):
    return [{"word": word, "start": start_s, "end": end_s} for start_s, end_s, word in words]


def faster_whisper(words, blank, text):
    items = list(whisper_pieces(words, blank))
    return json.dumps(segments(items, "".join(item["word"] for item in items)))


def faster_whisper_list(words, blank, text):
    return json.dumps(json.loads(faster_whisper(words, blank, text))["segments"])


def whisperx(words, blank, text):
    return json.dumps(segments(plain(words), text))


def clock_times(words, blank, text):
    items = [{"word": word, "start": f"00:00:{a:06.3f}", "end": f"00:00:{b:06.3f}"} for a, b, word in words]
    return json.dumps(segments(items, text))


def verbose_json(words, blank, text):
    half = {"start": 0, "end": words[-1][1], "text": text}
    return json.dumps({"text": text, "segments": [half], "words": plain(words)})


def stamp(time_s, mark="."):
    return f"00:00:{time_s:06.3f}".replace(".", mark)


def webvtt(cues):
    return "WEBVTT\n\n" + "\n\n".join(f"{stamp(a)} --> {stamp(b)}\n{text}" for a, b, text in cues) + "\n"


def subrip(cues):
    blocks = [f"{n}\n{stamp(a, ',')} --> {stamp(b, ',')}\n{text}" for n, (a, b, text) in enumerate(cues, 1)]
    return "\n\n".join(blocks) + "\n"


def a_cue_a_word(words, blank, text):
    return subrip(words)


def inline_stamps(words, blank, text):
    stamped = "".join(f"<{stamp(a)}><c>{blank}{word}</c>" if a else word for a, _, word in words)
    return webvtt([(0.0, words[-1][1], stamped)])


def rolling_cues(words, blank, text):
    """YouTube: each cue shows the line before it, and between two of them a cue of 10 ms shows that line alone."""
    cues = [(*words[0][:2], words[0][2])]
    for (_, _, before), (start_s, end_s, word) in pairwise(words):
        cues += [(start_s, start_s + 0.01, before), (start_s + 0.01, end_s, f"{before}\n{word}")]
    return cues


def rolling_vtt(words, blank, text):
    return webvtt(rolling_cues(words, blank, text))


def rolling_srt(words, blank, text):
    return subrip(rolling_cues(words, blank, text))


def highlighted(words, blank, text):
    cues = []
    for number, (start_s, end_s, _) in enumerate(words):
        marked = blank.join(f"<u>{word}</u>" if n == number else word for n, (_, _, word) in enumerate(words))
        cues.append((start_s, end_s, marked))
    return subrip(cues)


def growing(words, blank, text):
    return webvtt([(a, b, blank.join(w for _, _, w in words[: n + 1])) for n, (a, b, _) in enumerate(words)])


def conversation(words, blank, text):
    return json.dumps({"video": "a.mp4", "content": [list(word) for word in words]})


KINDS = [
    faster_whisper, faster_whisper_list, whisperx, clock_times, verbose_json, a_cue_a_word, inline_stamps, rolling_vtt,
    rolling_srt, highlighted, growing, conversation,
]  # fmt: skip


@pytest.mark.parametrize("language", SAID)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_word_is_read_once_in_its_second(tmp_path, kind, language):
    words = timed(SAID[language].split())
    text = BLANK[language].join(word for _, _, word in words)
    path = tmp_path / "transcript"
    path.write_text(kind(words, BLANK[language], text), "utf-8")
    cues = parse_conversation(path.read_bytes()).cues if kind is conversation else read_cues(path)
    transcript, counts = repair(cues)
    num_turns = 1 + turn_of(words[-1][1], start_s=0.0, turn_s=1.0)
    seconds = [[w for _, end_s, w in words if turn_of(end_s, start_s=0.0, turn_s=1.0) == n] for n in range(num_turns)]
    assert transcript.lines(start_s=0.0, num_turns=num_turns) == [BLANK[language].join(said) for said in seconds]
    assert {name for name, num in counts.items() if num} <= {"repeated"}
    assert ("repeated" in +counts) == (kind in (rolling_vtt, rolling_srt, growing))
