"""The words of a segment joined give the segment's own text, in every format and in every script."""

import json

import pytest

from streamingvlm.data.transcript import repair
from streamingvlm.data.transcript_files import read_cues

PIECES = [" It's", " 3", ".5", " at", " 50", "%", " d", "'avoir"]
ENGLISH, RED_TEAM = "the ball is in", "红队进球领先"


@pytest.fixture
def lines_of(tmp_path):
    """Write a transcript and return the lines of its first seconds."""

    def lines(content, num_turns=4, name="match.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return repair(read_cues(path))[0].lines(start_s=0.0, num_turns=num_turns)

    return lines


def segment(pieces, *, step_s=0.4, text=None, **fields):
    words = [{"word": w, "start": i * step_s, "end": (i + 1) * step_s} for i, w in enumerate(pieces)]
    document = {"start": 0, "end": len(pieces) * step_s, "words": words, **fields}
    return document if text is None else {**document, "text": text}


def test_a_piece_without_a_blank_stays_with_its_word_and_belongs_to_the_second_in_which_that_ends(lines_of):
    assert lines_of({"segments": [segment(PIECES, text="".join(PIECES))]}) == ["It's", "3.5 at", "50%", "d'avoir"]


@pytest.mark.parametrize(
    ("pieces", "text", "lines"),
    [
        pytest.param([" twenty", "-one", " all"], None, ["", "twenty-one", "all"], id="hyphen, no text"),
        pytest.param([" $", "20", " fee"], " $20 fee", ["", "$20", "fee"], id="sign before"),
        pytest.param([" don", "'t", " go"], " don't go", ["", "don't", "go"], id="apostrophe"),
        pytest.param(["It", "is", "3.5"], "It is 3.5", ["It", "is", "3.5"], id="WhisperX"),
        pytest.param(["It", "is", "in"], None, ["It", "is", "in"], id="WhisperX without text"),
        pytest.param(
            ["Goal", "for", "red"], '"Goal," for “red”!', ['"Goal,"', "for", "“red”!"], id="marks in the text"
        ),
        pytest.param(["3", "5", "up"], "3.5 up", ["", "3.5", "up"], id="mark between two words"),
        pytest.param(["Goal ", "for ", "red"], None, ["Goal", "for", "red"], id="blanks after words"),
        pytest.param(list("红队进"), "红队进", ["红", "队", "进"], id="Chinese"),
        pytest.param(list("ゴール"), None, ["ゴ", "ー", "ル"], id="Japanese without text"),
        pytest.param(["红队", "2", "比0。"], "红队2比0。", ["红队", "2", "比0。"], id="Chinese with digits"),
        pytest.param(["ประ", "ตู", "ได้"], "ประตูได้", ["ประ", "ตู", "ได้"], id="Thai"),
        pytest.param(["골", "넣었다", "레드"], "골 넣었다 레드", ["골", "넣었다", "레드"], id="Korean"),
        pytest.param(
            [" 안녕", "하세요", " 여러분"], " 안녕하세요 여러분", ["", "안녕하세요", "여러분"], id="Korean pieces"
        ),
        pytest.param(["one", "other", "two"], "uno dos", ["one", "other", "two"], id="another text"),
    ],
)
def test_pieces_and_text_agree(lines_of, pieces, text, lines):
    assert lines_of([segment(pieces, step_s=1.0, text=text)], 3) == lines


def test_a_word_of_two_pieces_has_the_times_that_one_of_them_has(lines_of):
    document = segment([" at", " 50", "%", " now"], step_s=1.0, text=" at 50% now")
    del document["words"][2]["start"], document["words"][2]["end"]
    assert lines_of([document]) == ["at", "50%", "", "now"]


@pytest.mark.parametrize("text", ["The ball, is in.", None])
def test_words_beside_the_segments_keep_their_times(lines_of, text):
    """OpenAI's verbose_json with both granularities: the words have no marks, the segments no words."""
    words = [{"word": w, "start": i, "end": i + 1.0} for i, w in enumerate(["The", "ball", "is", "in"])]
    segments = [{"start": 0.0, "end": 2.0, "text": " The ball,"}, {"start": 2.0, "end": 4.0, "text": " is in."}]
    document = {"task": "transcribe", "segments": segments, "words": words}
    assert lines_of(document if text is None else {**document, "text": text}) == ["The", "ball,", "is", "in."]
    assert lines_of({"text": "The ball, is in.", "words": words}) == ["The", "ball,", "is", "in."]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("don<00:01.000><c>'t</c><00:02.000><c> go</c>", ["", "don't", "", "go"]),
        ("3<00:01.000><c>.5</c><00:02.000><c> up by</c>", ["", "3.5", "up", "by"]),
        ("红<00:01.000><c>队</c><00:02.000><c>进球</c>", ["红", "队", "进", "球"]),
        ("hello wor<00:02.000><c>ld now</c>", ["", "hello", "world", "now"]),
    ],
)
def test_stamps_inside_words_do_not_split_them(lines_of, text, lines):
    assert lines_of(f"WEBVTT\n\n00:00.000 --> 00:04.000\n{text}\n", name="a.vtt") == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("红队进球，领先", ["红队", "进", "球，领先"], id="Chinese"),
        pytest.param("レッドゴール", ["レッ", "ドゴ", "ール"], id="Japanese"),
        pytest.param("「红」队进球了", ["", "「红」队", "进球了"], id="brackets"),
        pytest.param("แดงได้ประ", ["แดง", "ได้", "ประ"], id="Thai"),
        pytest.param("ທີມແດງໄດ້ປະຕູ", ["ທີມ", "ແດງ", "ໄດ້ປະຕູ"], id="Lao"),
        pytest.param("ក្រុមក្រហម", ["", "ក្រុម", "ក្រហម"], id="Khmer"),
        pytest.param("레드 팀이 골을 넣다", ["레드", "팀이", "골을 넣다"], id="Korean"),
        pytest.param("红队 进球 领先", ["红队", "进球", "领先"], id="Chinese with blanks"),
    ],
)
def test_text_without_blanks_is_spread_by_characters(lines_of, text, lines):
    found = lines_of(f"1\n00:00:00,000 --> 00:00:03,000\n{text}\n", 3, name="a.srt")
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert found == lines


def test_cues_join_as_their_script_does(lines_of):
    cues = "1\n00:00:00,100 --> 00:00:00,400\n{}\n\n2\n00:00:00,500 --> 00:00:00,900\n{}\n"
    assert lines_of(cues.format("红队\n进", "球"), 1, name="a.srt") == ["红队进球"]
    assert lines_of(cues.format("the ball", "is in"), 1, name="b.srt") == [ENGLISH]
    assert lines_of(cues.format("2比", "0 OK"), 1, name="c.srt") == ["2比 0 OK"]
