"""Captions that roll, grow, highlight and stamp their words: each word once, in the second in which it is said."""

import pytest

from streamingvlm.data.transcript import repair
from streamingvlm.data.transcript_files import read_cues


def vtt(*cues):
    """Write cues of (start, end, text) as WebVTT."""
    return "WEBVTT\n\n" + "\n\n".join(f"00:{a:06.3f} --> 00:{b:06.3f}\n{text}" for a, b, text in cues) + "\n"


def subrip(*cues):
    stamps = [f"00:00:{a:06.3f} --> 00:00:{b:06.3f}".replace(".", ",") for a, b, _ in cues]
    blocks = (f"{n}\n{stamp}\n{cue[2]}" for n, (stamp, cue) in enumerate(zip(stamps, cues, strict=True), 1))
    return "\n\n".join(blocks) + "\n"


FORMATS = pytest.mark.parametrize("write", [vtt, subrip])


@pytest.fixture
def read(tmp_path):
    """Read a file; return the lines of its seconds and the counts."""

    def lines(text, num_turns=6):
        path = tmp_path / "captions"
        path.write_text(text, "utf-8")
        transcript, counts = repair(read_cues(path))
        return transcript.lines(start_s=0.0, num_turns=num_turns), dict(+counts)

    return lines


def test_a_line_of_one_word_without_a_stamp_is_read(read):
    cues = [
        (0.01, 2.0, "thanks<00:00.400><c> to</c>"),
        (2.01, 3.0, "thanks to\nammunition"),
        (3.01, 5.0, "ammunition\nfor<00:03.400><c> guns</c>"),
    ]
    assert read(vtt(*cues)) == (["thanks", "to", "ammunition", "for", "guns", ""], {"repeated": 3})


def test_one_karaoke_cue_does_not_lose_the_others(read):
    cues = [(0, 1, "kick off"), (1, 3, "a <00:02.000>pass"), (3, 4, "goal for red")]
    assert read(vtt(*cues))[0] == ["kick off", "a", "pass", "goal for red", "", ""]


@FORMATS
def test_captions_that_roll_are_read_once(read, write):
    cues = [
        (0, 1, "kick off"),
        (1, 2, "kick off\nred has it"),
        (2, 2.01, "red has it"),
        (2.01, 3, "red has it\nand shoots"),
        (3, 4, "red has it\nand shoots\ngoal"),
    ]
    assert read(write(*cues)) == (["kick off", "red has it", "and shoots", "goal", "", ""], {"repeated": 13})


@FORMATS
def test_captions_that_grow_by_a_word_are_read_once(read, write):
    cues = [(0, 1, "red"), (1, 2, "red has"), (2, 3, "red has the"), (3, 4, "red has the ball"), (5, 6, "and")]
    assert read(write(*cues)) == (["red", "has", "the", "ball", "", "and"], {"repeated": 6})


@FORMATS
@pytest.mark.parametrize("text", ["Goal!", "Goal!\nWhat a goal!"])
def test_what_is_said_twice_is_kept_twice(read, write, text):
    lines, counts = read(write((0, 1, text), (1, 2, text), (3, 4, text)))
    assert (lines[0], lines[1], lines[3], counts) == (*[" ".join(text.split())] * 3, {})


@FORMATS
@pytest.mark.parametrize("mark", ["<u>{}</u>", '<font color="#ffff00">{}</font>', "<b>{}</b>"])
def test_the_highlighted_word_is_the_one_that_is_said(read, write, mark):
    words = ["the", "the", "ball,", "in"]
    cues = []
    for number, word in enumerate(words):
        cues.append((number, number + 0.9, " ".join([*words[:number], mark.format(word), *words[number + 1 :]])))
        cues.append((number + 0.9, number + 1, " ".join(words)))
    assert read(write(*cues)) == (["the", "the", "ball,", "in", "", ""], {})


@FORMATS
def test_highlighted_parts_of_words_and_words_that_are_never_marked(read, write):
    cues = [(0, 1, "<u>at</u> 45 don't!"), (2, 3, "at 45 <u>don</u>'t!"), (3, 4, "at 45 don<u>'t</u>!"), (4, 5, "end")]
    assert read(write(*cues))[0] == ["at", "45", "", "don't!", "end", ""]


def test_characters_may_be_highlighted(read):
    assert read(vtt((0, 1, "<u>红</u>队进"), (1, 2, "红<u>队</u>进"), (2, 3, "红队<u>进</u>")))[0][:3] == [
        "红",
        "队",
        "进",
    ]


@FORMATS
@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[Music]", "", {"sound": 1}),
        ("(applause) goal", "goal", {"sound": 1}),
        ("(crowd\ncheering) goal", "goal", {"sound": 1}),
        ("goal[applause]for red", "goal for red", {"sound": 1}),
        ("（拍手）ゴール", "ゴール", {"sound": 1}),
        ("it is (2-1) to red", "it is (2-1) to red", {}),
        ("♪ we are red ♪", "we are red", {"note": 2}),
        ("&gt;&gt; goal", "goal", {"speaker": 1}),
        (">> ANNA: goal", "goal", {"speaker": 1}),
        ("- Goal?\n- Goal.", "Goal? Goal.", {"speaker": 2}),
        ("- Anna: goal", "goal", {"speaker": 1}),
        ("ANNA: goal", "ANNA: goal", {}),
        ("GOAL: the red team", "GOAL: the red team", {}),
        ("NOTE: rain", "NOTE: rain", {}),
        ("Speaker 1: goal", "goal", {"speaker": 1}),
        ("[SPEAKER_00]: goal", "goal", {"sound": 1}),
        ("-1 degrees", "-1 degrees", {}),
        ("GOAL: RED", "GOAL: RED", {}),
        ("two to one: red wins", "two to one: red wins", {}),
        ("goal<br>for red", "goal for red", {}),
        ("red < blue and blue > red", "red < blue and blue > red", {}),
    ],
)
def test_what_is_not_speech_is_dropped_and_counted(read, write, text, line, reason):
    lines, counts = read(write((0, 1, text), (2, 3, "end")))
    assert (lines[0], counts) == (line, reason)


@FORMATS
def test_a_name_that_opens_several_cues_is_a_speaker(read, write):
    cues = ["Anna Bell: goal", "BO: yes", "Score: one nil", "Anna Bell: red: one", "BO: NO", "Anna Bell said so", "end"]
    lines, counts = read(write(*((second, second + 1, text) for second, text in enumerate(cues))))
    assert lines[:6] == ["goal", "yes", "Score: one nil", "red: one", "NO", "Anna Bell said so"]
    assert counts == {"speaker": 4}


@FORMATS
def test_a_word_that_opens_a_cue_now_and_then_is_speech(read, write):
    cues = [(second, second + 1, "GOAL: red" if second in (3, 9) else f"word {second}") for second in range(30)]
    lines, counts = read(write(*cues), 30)
    assert (lines[3], lines[9], counts) == ("GOAL: red", "GOAL: red", {})


@FORMATS
def test_marks_that_are_not_shown_are_dropped(read, write):
    lines, _ = read(write((0, 1, "\u200bgo\u00adal\u200f for\ufeff"), (1, 2, "\u202bred\u202c"), (2, 3, "می\u200cرود")))
    assert lines[:3] == ["goal for", "red", "می\u200cرود"]


def test_voices_and_readings_of_webvtt(read):
    cues = [(0, 1, "<v Anna>goal</v> <v Bo>yes</v>"), (1, 2, "<ruby>球<rt>たま</rt></ruby>だ")]
    assert read(vtt(*cues), 2) == (["goal yes", "球だ"], {"speaker": 2})
