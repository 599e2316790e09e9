"""Transcripts of speech recognisers and subtitles, recognised by their content."""

import json
from types import SimpleNamespace

import pytest
from published_layouts import steady_words, subrip, webvtt, whisperx

from streamingvlm.data.transcript import Word, repair
from streamingvlm.data.transcript_files import read_cues, segment_cue
from streamingvlm.errors import DataError

CUES = [(0.0, 4.0, "the ball is"), (4.0, 6.0, "in")]
SPREAD = [("the", 0.0, 1.333), ("ball", 1.333, 3.111), ("is", 3.111, 4.0), ("in", 4.0, 6.0)]


def rounded(words):
    return [(word.text, round(word.start_s, 3), round(word.end_s, 3)) for word in words]


@pytest.fixture
def words_of(tmp_path):
    """Write a text under a name without a suffix and read it."""

    def words(text, name="transcript"):
        path = tmp_path / name
        path.write_text(text, "utf-8") if isinstance(text, str) else path.write_bytes(text)
        return list(repair(read_cues(path))[0].words)

    return words


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(lambda x: x, id="WhisperX"),
        pytest.param(lambda x: x["segments"], id="a list of faster-whisper's segments"),
        pytest.param(lambda x: {"info": {}, "segments": x["segments"]}, id="with more around it"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_of_recognisers(words_of, document, indent):
    words = steady_words(20)
    assert words_of(json.dumps(document(whisperx(words)), indent=indent)) == words


def test_a_segment_without_words_has_its_time_spread(words_of):
    segments = [{"start": a, "end": b, "text": f" {text}"} for a, b, text in CUES]
    segments[1]["words"] = []
    found = words_of(json.dumps({"segments": segments}))
    assert rounded(found) == SPREAD


def test_objects_of_faster_whisper_are_read_as_their_json_is():
    word = SimpleNamespace(word=" goal", start=1.0, end=1.5, probability=0.9)
    spoken = SimpleNamespace(id=1, start=1.0, end=1.5, text=" goal", words=[word])
    assert repair([segment_cue(spoken, "x")])[0].words == (Word(1.0, 1.5, "goal"),)
    assert repair([segment_cue(SimpleNamespace(start=1.0, end=1.5, text=" goal", words=None), "x")])[0].words == (
        Word(1.0, 1.5, "goal"),
    )


@pytest.mark.parametrize("write", [webvtt, subrip])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_subtitles_have_their_times_spread_over_their_words(words_of, write, newline, mark):
    found = words_of(mark + write(CUES).replace("\n", newline))
    assert rounded(found) == SPREAD


def test_markup_is_removed(words_of):
    cues = [(0.0, 1.0, "<v Anna>AT&amp;T <i>says</i>"), (1.0, 2.0, "{\\an8}hello\n<c.yellow>there</c>")]
    assert [word.text for word in words_of(webvtt(cues))] == ["AT&T", "says", "hello", "there"]


def test_live_captions_are_not_read_twice(words_of):
    text = """WEBVTT
Kind: captions

00:00:00.000 --> 00:00:01.000 align:start position:0%
so

00:00:01.000 --> 00:00:03.000 align:start position:0%
so
the<00:00:01.500><c> ball</c><00:00:02.000><c> is</c>

00:00:03.000 --> 00:00:03.010 align:start position:0%
the ball is

00:00:03.010 --> 00:00:05.000 align:start position:0%
the ball is
in<00:00:04.000><c> play</c>
"""
    assert words_of(text) == [
        Word(0.0, 1.0, "so"),
        Word(1.0, 1.5, "the"),
        Word(1.5, 2.0, "ball"),
        Word(2.0, 3.0, "is"),
        Word(3.01, 4.0, "in"),
        Word(4.0, 5.0, "play"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("text", [webvtt(CUES), subrip(CUES), json.dumps(whisperx(steady_words(4)))])
def test_unicode_of_windows_is_read(words_of, encoding, text):
    assert words_of(text.encode(encoding)) == words_of(text)


@pytest.mark.parametrize(
    "written", [str, "{}s".format, "00:00:{:06.3f}".format, lambda at_s: f"00:00:{at_s:06.3f}".replace(".", ",")]
)
def test_times_may_be_text(words_of, written):
    document = whisperx(steady_words(20))
    for item in [*document["segments"], *(word for segment in document["segments"] for word in segment["words"])]:
        item["start"], item["end"] = written(item["start"]), written(item["end"])
    assert words_of(json.dumps(document)) == steady_words(20)


def test_skipped_cues_are_logged(words_of, caplog):
    words = words_of(webvtt(CUES) + "\n\n00:07 --> soon\nlost\n")
    assert len(words) == 4
    assert "skipped 1 cues" in caplog.text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["not a transcript", "WebVTT"]),
        ("hello there", ["not a transcript"]),
        ('{"segments": [\n{"start": 1,, }]}', [":2", "not valid JSON"]),
        ('{"segments": 3}', ["no list of segments"]),
        ('{"words": []}', ["no list of segments"]),
        ('{"segments": [{"start": 0}]}', ["segment 0", "neither words nor text"]),
        ('{"segments": [7]}', ["segment 0"]),
        ('{"segments": [{"text": "a", "words": [{"start": 1}]}]}', ["segment 0", "word without text"]),
        ("[" * 100_000, ["JSON"]),
        ("WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nCaf\xe9".encode("latin-1"), ["not UTF-8", "iconv"]),
    ],
)
def test_a_file_that_is_not_a_transcript_is_named_in_one_line(words_of, content, parts):
    with pytest.raises(DataError) as caught:
        words_of(content, name="match.json")
    assert "match.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read_cues(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "text",
    [
        "[Script Info]\nTitle: x\n",
        "[V4+ Styles]\n",
        "[ti:Match]\n[00:01.00]goal\n",
        "[00:01.00]goal\n",
        "0:00:00.000,0:00:01.000\ngoal\n",
    ],
    ids=["ass", "ssa", "lrc with a title", "lrc", "sbv"],
)
def test_captions_of_another_kind_are_told_how_to_be_converted(tmp_path, text):
    path = tmp_path / "captions"
    path.write_text(text)
    with pytest.raises(DataError, match=r"is not a transcript; .* \(ffmpeg -i FILE NEW.srt converts other captions\)"):
        read_cues(path)
