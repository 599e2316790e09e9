"""LiveSports-3K-CC in its published layout: the table, predictions and comparisons."""

import json

import pyarrow as pa
import pytest
from published_layouts import livesports_row, write_lines
from pyarrow import parquet

from streamingvlm.errors import DataError
from streamingvlm.evaluation.llm_judge.commentary_files import CommentedClip, Utterance
from streamingvlm.evaluation.llm_judge.livesports import (
    comparisons,
    predictions,
    read_events,
    read_predictions,
    write_predictions,
)

ROWS = [
    livesports_row("x.mp4", 0, 3.0, 9.5, " A goal. ", before="They attack."),
    livesports_row("x.mp4", 1, 10.0, 14.0, "A save."),
    livesports_row("y.mp4", 0, 0.0, 5.0, "A miss."),
]


def write_parquet(path, rows):
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(params=["parquet", "jsonl"])
def table(request, tmp_path):
    write = write_parquet if request.param == "parquet" else write_lines
    return write(tmp_path / f"events.{request.param}", ROWS)


@pytest.fixture
def events(tmp_path):
    return read_events(write_lines(tmp_path / "events.jsonl", ROWS), tmp_path)


def test_the_table_is_read_in_either_form(table, tmp_path):
    first, second, third = read_events(table, tmp_path)
    assert (first.name, second.name, third.name) == ("x:0", "x:1", "y:0")
    assert (first.video, first.begin_s, first.end_s) == (tmp_path / "x.mp4", 3.0, 9.5)
    assert (first.previous_text, first.reference, first.title) == ("They attack.", "A goal.", "event 0")
    assert [event.name for event in read_events(table, tmp_path, num_events=2)] == ["x:0", "x:1"]


def test_an_event_has_the_commentary_before_it_as_previous_text(events):
    task = events[0].task("Comment on {title}, {please}.")
    [clip] = task.clips
    assert (clip.start_s, clip.end_s, clip.previous_text) == (3.0, 9.5, "They attack.")
    assert clip.query == "Comment on event 0, {please}."


def test_predictions_are_in_the_published_shape_and_read_back(events, tmp_path):
    said = {
        event.name: (CommentedClip(event.begin_s, event.end_s, (Utterance(0, 1, "Oh!"), Utterance(1, 2, event.name))),)
        for event in events
    }
    texts = predictions(events, said)
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, events, texts)
    assert json.loads(path.read_text().splitlines()[1]) == {
        "video_id": "x",
        "event_id": "1",
        "begin": 10.0,
        "end": 14.0,
        "pred": "Oh! x:1",
    }
    assert read_predictions(path, events) == texts


def test_event_numbers_may_be_numbers(events, tmp_path):
    lines = [{name: row[name] for name in ("video_id", "event_id", "begin", "end")} | {"pred": "p"} for row in ROWS]
    path = write_lines(tmp_path / "theirs.jsonl", lines)
    assert set(read_predictions(path, events).values()) == {"p"}


def test_events_are_compared_with_the_commentary_on_air(events):
    ours, theirs = ({event.name: who for event in events} for who in ("ours", "theirs"))
    found = list(comparisons(events, ours, theirs))
    assert [(c.name, c.group, c.reference) for c in found] == [
        ("x:0", "x", "A goal."),
        ("x:1", "x", "A save."),
        ("y:0", "y", "A miss."),
    ]
    assert {(c.text_a, c.text_b) for c in found} == {("ours", "theirs")}


def test_an_event_without_a_prediction_is_named(events, tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, events[:1], {"x:0": "p"})
    with pytest.raises(DataError, match=r"no prediction for 2 of 3 events, first x:1"):
        read_predictions(path, events)


@pytest.mark.parametrize("line", [{"video_id": "x", "event_id": 0}, [], {"video_id": "x", "event_id": 0, "pred": None}])
def test_a_line_that_is_no_prediction_is_named(events, tmp_path, line):
    path = write_lines(tmp_path / "theirs.jsonl", [line])
    with pytest.raises(DataError, match=r"theirs\.jsonl:1 is no prediction"):
        read_predictions(path, events)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"event_asr_text": None}, "is no event of LiveSports-3K-CC"),
        ({"begin": "soon"}, "is no event of LiveSports-3K-CC"),
        ({"video": None}, "is no event of LiveSports-3K-CC"),
        ({"begin": 9.0, "end": 3.0}, r"lasts from 9 s to 3 s"),
        ({"video": "../x.mp4"}, "leads out of"),
        ({"event_id": 0}, "has an event twice"),
    ],
)
def test_a_row_of_another_layout_is_named(tmp_path, change, reason):
    path = write_lines(tmp_path / "events.jsonl", [ROWS[0], ROWS[1] | change])
    with pytest.raises(DataError, match=reason) as caught:
        read_events(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_another_table_is_named(tmp_path):
    with pytest.raises(DataError, match="expected video, video_id"):
        read_events(write_parquet(tmp_path / "other.parquet", [{"question": "?"}]), tmp_path)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_events(tmp_path / "no.parquet", tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="has no event"):
        read_events(tmp_path / "empty.jsonl", tmp_path)
