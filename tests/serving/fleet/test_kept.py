"""What is kept of a session, and what of it counts wherever its process was killed."""

import json

import pytest

from streamingvlm.errors import SnapshotError
from streamingvlm.serving.fleet.kept import KeptAsked, KeptSession, left_in
from streamingvlm.serving.streams import Streams
from streamingvlm.video.reader import open_video

ID = "ses_of_a_test"


@pytest.fixture(scope="module")
def seconds():
    from running_server import MATCH

    with open_video(MATCH) as video:
        return [second for _, second in zip(range(4), video, strict=False)]


@pytest.fixture
def stream(pitch):
    streams = Streams(pitch, {}, num_streams=1)
    yield streams.open()
    streams.close()


def asked(**more) -> KeptAsked:
    return KeptAsked(id=ID, owner="local", **more)


def keep(kept: KeptSession, stream, seconds) -> None:
    for second in seconds:
        line = stream.submit(second).result()
        kept.keep({"end_s": line.end_s, "text": line.text}, stream)


def found(folder) -> KeptSession:
    return KeptSession.found(folder, ID, max_lines=100)


def test_lines_are_found_with_their_numbers_and_the_time_of_the_last(tmp_path, stream, seconds):
    keep(KeptSession.new(tmp_path, asked(query="Who leads?"), max_lines=100), stream, seconds[:2])
    again = found(tmp_path)
    assert ([line["id"] for line in again.lines], again.seen_s, again.asked.query) == ([1, 2], 2.0, "Who leads?")
    keep(again, stream, seconds[2:])
    assert [line["id"] for line in found(tmp_path).lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("more", ['{"id": 3, "end_s": 3.0, "text": "not saved"}\n', '{"id": 3, "end'])
def test_a_line_without_its_snapshot_was_told_to_nobody(tmp_path, stream, seconds, more):
    keep(KeptSession.new(tmp_path, asked(), max_lines=100), stream, seconds[:2])
    with next((tmp_path / ID).glob("lines-*.jsonl")).open("a") as journal:
        journal.write(more)
    again = found(tmp_path)
    assert ([line["id"] for line in again.lines], again.seen_s) == ([1, 2], 2.0)
    keep(again, stream, seconds[2:3])
    assert found(tmp_path).lines[-1]["id"] == 3
    assert "not saved" not in json.dumps(found(tmp_path).lines)


def test_before_the_first_second_there_is_nothing_but_what_was_asked(tmp_path):
    KeptSession.new(tmp_path, asked(), max_lines=100)
    again = found(tmp_path)
    assert (again.lines, again.seen_s, again.has_snapshot) == ([], 0.0, False)


def test_the_journal_stays_short_and_keeps_the_newest_lines(tmp_path, stream, seconds):
    kept = KeptSession.new(tmp_path, asked(), max_lines=1)
    keep(kept, stream, seconds)
    journal = next((tmp_path / ID).glob("lines-*.jsonl"))
    assert len(journal.read_text().splitlines()) <= 2
    assert KeptSession.found(tmp_path, ID, max_lines=1).lines[-1]["id"] == 4


def test_who_has_the_session_no_more_cannot_write_over_who_has(tmp_path, stream, seconds):
    before = KeptSession.new(tmp_path, asked(), max_lines=100)
    keep(before, stream, seconds[:1])
    now = found(tmp_path)
    keep(now, stream, seconds[1:2])
    with pytest.raises(SnapshotError, match="written by another stream"):
        keep(before, stream, seconds[2:3])
    assert [line["id"] for line in found(tmp_path).lines] == [1, 2]


def test_what_is_no_session_is_refused_in_one_line_and_passed_over(tmp_path):
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "session.json").write_text('{"id": "../elsewhere", "owner": "local"}')
    with pytest.raises(SnapshotError, match=f"nothing that can be read is kept of {ID}"):
        found(tmp_path)
    assert left_in(tmp_path) == []
