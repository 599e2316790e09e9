"""StreamingBench's real-time part in both published layouts."""

import json
from pathlib import Path

import pytest
from published_layouts import streaming_bench_list, streaming_bench_table

from streamingvlm.errors import DataError
from streamingvlm.evaluation.qa.streaming_bench import read_streaming_bench


@pytest.fixture
def write(tmp_path):
    def write_list(content, name="questions_real.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_list


def test_the_list_of_the_repository_is_read(write, tmp_path):
    items = read_streaming_bench(write(streaming_bench_list()), tmp_path)
    assert [(item.name, item.task, item.clip.start_s, item.clip.end_s, item.truth) for item in items] == [
        ("sample_1_real:1", "Object Recognition", 0.0, 3.0, "A"),
        ("sample_1_real:2", "Counting", 0.0, 5.0, "B"),
        ("sample_1_real:3", "Counting", 0.0, 2.0, "D"),
    ]
    assert items[0].question.options == ("Red.", "Blue.", "Green.", "Nobody."), "the letters are the prompt's"
    assert items[0].clip.video == tmp_path / "videos" / "sample_1_real.mp4"


def test_the_table_of_the_dataset_is_read(write, tmp_path):
    items = read_streaming_bench(write(streaming_bench_table(), "Real_Time_Visual_Understanding.csv"), tmp_path)
    assert [item.clip.end_s for item in items] == [3.0, 65.0, 3600.0]
    assert items[0].question.options == ("Red.", "Blue.", "It's green.", "Nobody.")
    assert len({item.name for item in items}) == 3


PLACES = ["sample_1/video.mp4", "sample_1.mp4", "sample_1_real.mp4"]


@pytest.mark.parametrize(
    ("name", "place"),
    # The table names no folder.
    [("table.csv", place) for place in PLACES]
    + [("questions_real.json", place) for place in [*PLACES, "videos/sample_1_real.mp4"]],
)
def test_a_video_is_found_under_each_name_that_it_is_published_with(write, tmp_path, name, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    content = streaming_bench_table() if name == "table.csv" else streaming_bench_list()
    assert read_streaming_bench(write(content, name), tmp_path, num_entries=1)[0].clip.video == tmp_path / place


def test_a_clip_may_begin_some_seconds_before_its_question(write, tmp_path):
    path = write(streaming_bench_table(), "table.csv")
    assert [item.clip.start_s for item in read_streaming_bench(path, tmp_path, context_s=60)] == [0.0, 5.0, 3540.0]


def test_options_of_which_not_all_have_letters_are_left_as_they_are(write, tmp_path):
    entries = streaming_bench_list()
    entries[0]["questions"][0]["options"] = ["A. D. Smith", "Blue", "Green", "Nobody"]
    items = read_streaming_bench(write(entries), tmp_path)
    assert items[0].question.options == ("A. D. Smith", "Blue", "Green", "Nobody")


@pytest.mark.parametrize(
    "change",
    [
        {"options": ["A. One", "B. Two"]},
        {"options": None},
        {"answer": "E"},
        {"answer": ""},
        {"answer": "AB"},
        {"time_stamp": "soon"},
        {"question": None},
        {"task_type": 3},
    ],
)
def test_a_question_of_another_layout_is_named_in_one_line(write, tmp_path, change):
    entries = streaming_bench_list()
    entries[1]["questions"][0].update(change)
    with pytest.raises(DataError, match="entry 1 is no question; expected task_type") as error:
        read_streaming_bench(write(entries), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{}", "a.json", "no list"),
        ("?", "a.json", "not JSON"),
        ("[]", "a.json", "no question"),
        ("[3]", "a.json", "video_path and questions"),
        ("a,b\n1,2\n", "a.csv", "row 2 has no question_id"),
        (streaming_bench_table().replace("['A.", "__import__('os')"), "a.csv", "row 2 is no question"),
        ("", "a.csv", "no question"),
    ],
)
def test_a_file_of_another_layout_is_named_in_one_line(write, tmp_path, text, name, message):
    with pytest.raises(DataError, match=message) as error:
        read_streaming_bench(write(text, name), tmp_path)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_or_doubles_is_refused(write, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_streaming_bench(tmp_path / "absent.csv", tmp_path)
    table = streaming_bench_table()
    with pytest.raises(DataError, match="twice"):
        read_streaming_bench(write(table + table.splitlines()[1] + "\n", "a.csv"), tmp_path)
