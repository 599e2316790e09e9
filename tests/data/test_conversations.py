"""JSONL in the published format of LiveCC and Inf-Streams, complete and damaged."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_layouts import conversation, steady_words, write_lines

from streamingvlm.data.conversations import (
    Conversation,
    TimedQuestion,
    is_conversation_file,
    parse_conversation,
    read_conversations,
)
from streamingvlm.data.transcript import repair
from streamingvlm.errors import DataError

WORDS = steady_words(24, start_s=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "text_stream", "video"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "video", "text_stream", "qa_stream"]), inner)
    ),
)


def line(number, **more):
    return conversation(f"v{number}.mp4", WORDS, start_s=12, end_s=36, **more)


@pytest.mark.parametrize("index", [None, "inside", "beside"])
def test_every_line_is_read_with_and_without_the_seek_index(tmp_path, index):
    path = write_lines(tmp_path / "train_with_seeks.jsonl", [line(number) for number in range(5)], index=index)
    assert is_conversation_file(path)
    found = list(read_conversations(path))
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]
    assert [parsed.video for _, parsed in found] == [f"v{number}.mp4" for number in range(5)]


def test_every_published_field_is_read():
    parsed = parse_conversation(
        json.dumps(line(1, previous="before", title="A - B", category="sport", text="Who?")).encode()
    )
    assert (parsed.start_s, parsed.end_s) == (12.0, 36.0)
    assert (parsed.previous_text, parsed.title, parsed.category, parsed.query) == ("before", "A - B", "sport", "Who?")
    assert list(repair(parsed.cues, start_s=12, end_s=36)[0].words) == WORDS


def test_questions_are_read_and_bad_ones_counted():
    stream = [[None, 14.5, "who?", "him"], [None, "soon", "?", "!"], 7, [0, 15, "a"], [None, float("nan"), "?", "!"]]
    parsed = parse_conversation(json.dumps(line(1, questions=stream)).encode())
    assert parsed.questions == (TimedQuestion(14.5, "who?", "him"),)
    assert parsed.num_bad_questions == 4


def test_a_video_with_its_content_is_a_line_too():
    parsed = parse_conversation(
        json.dumps({"video": "g/1.mp4", "title": "T", "content": [[0.0, 0.5, "kick"]]}).encode()
    )
    assert (parsed.video, parsed.title, parsed.start_s, parsed.end_s) == ("g/1.mp4", "T", 0.0, None)
    assert [word.text for word in repair(parsed.cues)[0].words] == ["kick"]


def test_preasr_is_previous_text():
    document = {"video": "1.mp4", "content": [[0.0, 0.5, "kick"]], "preasr": "said before"}
    assert parse_conversation(json.dumps(document).encode()).previous_text == "said before"
    both = json.dumps(document | {"previous": "this counts"}).encode()
    assert parse_conversation(both).previous_text == "this counts"


def test_a_video_may_be_listed_with_the_path_of_its_transcript_or_alone():
    assert parse_conversation(b'{"video": "a.mp4", "transcript": "a.vtt"}').transcript == "a.vtt"
    assert parse_conversation(b'{"video": "a.mp4"}').cues is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"video": "a.mp4", ', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "neither a conversation nor a video"),
        (b'{"title": "x"}', "neither a conversation nor a video"),
        (b'{"video": "a.mp4", "conversations": [{"from": "human", "value": "?"}]}', "whose words have no times"),
        (b'{"video": "a.mp4", "messages": []}', "whose words have no times"),
        (b'{"video": 3}', "where a path is expected"),
        (b'[{"role": "user"}]', "without the user's video"),
        (json.dumps(conversation("a.mp4", WORDS)[:1]).encode(), "text_stream"),
        (json.dumps(conversation("a.mp4", WORDS, start_s="soon")).encode(), "video_start is 'soon'"),
        (b'{"video": "a.mp4", "content": [[1, 2]]}', "[start, end, word] is expected"),
        (b'{"video": "a.mp4", "content": 1}', "not a list of [start, end, word]"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_the_others_are_read(tmp_path, bad, reason):
    path = write_lines(tmp_path / "train.jsonl", [line(1), bad, line(2)])
    found = dict(read_conversations(path))
    assert isinstance(found.pop(2), DataError)
    assert [parsed.video for parsed in found.values()] == ["v1.mp4", "v2.mp4"]
    with pytest.raises(DataError) as caught:
        parse_conversation(bad)
    assert reason in str(caught.value)


def read(text):
    """Return the parsed line, or the error instead."""
    try:
        return parse_conversation(text)
    except DataError as error:
        return error


@given(JSON)
def test_any_json_is_a_conversation_or_an_error_of_ours(document):
    parsed = read(json.dumps(document).encode())
    assert parsed.video if isinstance(parsed, Conversation) else "\n" not in str(parsed)


def test_a_file_that_is_shorter_than_its_index_says_so(tmp_path):
    path = write_lines(tmp_path / "train_with_seeks.jsonl", [line(number) for number in range(5)], index="beside")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    *lines, (_, error) = read_conversations(path)
    assert len(lines) == 3
    assert "lists 5 lines, but it has 3" in str(error)


def test_empty_lines_are_skipped(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", [line(1), b"", b"  ", line(2)])
    assert [number for number, _ in read_conversations(path)] == [1, 4]


@pytest.mark.parametrize(
    ("name", "first"), [("a.json", b'{"segments": []}'), ("a.txt", b"hello"), ("a.vtt", b"WEBVTT")]
)
def test_other_files_are_no_conversations(tmp_path, name, first):
    (tmp_path / name).write_bytes(first + b"\n")
    assert not is_conversation_file(tmp_path / name)
