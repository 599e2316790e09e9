"""A session on disk: consistent wherever its process was killed."""

import json

import pytest

from streamingvlm.errors import SnapshotError
from streamingvlm.inference.snapshot_folder import read_manifest
from streamingvlm.serving.fleet.session_store import SessionStore, StoredSessionRequest, stored_sessions
from streamingvlm.serving.stream_pool import StreamPool
from streamingvlm.video.reader import open_video

ID = "ses_of_a_test"


@pytest.fixture(scope="module")
def turns():
    from running_server import MATCH

    with open_video(MATCH) as video:
        return [turn for _, turn in zip(range(4), video, strict=False)]


@pytest.fixture
def stream(pitch):
    pool = StreamPool(pitch, {}, num_streams=1)
    yield pool.open()
    pool.close()


def request(**more) -> StoredSessionRequest:
    return StoredSessionRequest(id=ID, owner="local", **more)


def append(store: SessionStore, stream, turns) -> None:
    for turn in turns:
        line = stream.submit(turn).result()
        store.append({"end_s": line.end_s, "text": line.text}, stream)


def load(folder) -> SessionStore:
    return SessionStore.load(folder, ID, max_lines=100)


def test_load_returns_the_numbered_lines_and_the_end_of_the_last(tmp_path, stream, turns):
    append(SessionStore.create(tmp_path, request(query="Who leads?"), max_lines=100), stream, turns[:2])
    again = load(tmp_path)
    assert ([line["id"] for line in again.lines], again.end_s, again.request.query) == ([1, 2], 2.0, "Who leads?")
    append(again, stream, turns[2:])
    assert [line["id"] for line in load(tmp_path).lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("more", ['{"id": 3, "end_s": 3.0, "text": "not saved"}\n', '{"id": 3, "end'])
def test_a_line_without_its_snapshot_is_discarded(tmp_path, stream, turns, more):
    append(SessionStore.create(tmp_path, request(), max_lines=100), stream, turns[:2])
    with next((tmp_path / ID).glob("lines-*.jsonl")).open("a") as journal:
        journal.write(more)
    again = load(tmp_path)
    assert ([line["id"] for line in again.lines], again.end_s) == ([1, 2], 2.0)
    append(again, stream, turns[2:3])
    assert load(tmp_path).lines[-1]["id"] == 3
    assert "not saved" not in json.dumps(load(tmp_path).lines)


def test_before_the_first_turn_only_the_request_is_stored(tmp_path):
    SessionStore.create(tmp_path, request(), max_lines=100)
    again = load(tmp_path)
    assert (again.lines, again.end_s, again.has_snapshot) == ([], 0.0, False)


def test_the_journal_is_bounded_and_keeps_the_newest_lines(tmp_path, stream, turns):
    store = SessionStore.create(tmp_path, request(), max_lines=1)
    append(store, stream, turns)
    journal = next((tmp_path / ID).glob("lines-*.jsonl"))
    assert len(journal.read_text().splitlines()) <= 2
    assert SessionStore.load(tmp_path, ID, max_lines=1).lines[-1]["id"] == 4


def test_a_process_that_lost_the_session_cannot_overwrite_it(tmp_path, stream, turns):
    before = SessionStore.create(tmp_path, request(), max_lines=100)
    append(before, stream, turns[:1])
    now = load(tmp_path)
    append(now, stream, turns[1:2])
    with pytest.raises(SnapshotError, match="another stream writes to"):
        append(before, stream, turns[2:3])
    assert [line["id"] for line in load(tmp_path).lines] == [1, 2]


def test_a_new_query_is_stored_while_the_line_of_a_turn_is_not_written_yet(tmp_path, stream, turns):
    store = SessionStore.create(tmp_path, request(query="Who leads?"), max_lines=100)
    append(store, stream, turns[:1])
    line = stream.submit(turns[1]).result()
    store.set_query("What is the score?")  # from another thread, between the end of the turn and its line
    assert [line["id"] for line in load(tmp_path).lines] == [1]
    assert read_manifest(store.snapshot)["stream"]["num_turns"] == 1
    assert load(tmp_path).request.query == "What is the score?"
    assert line.end_s == 2


def test_a_process_that_lost_the_session_cannot_change_its_query(tmp_path, stream, turns):
    before = SessionStore.create(tmp_path, request(query="Who leads?"), max_lines=100)
    append(before, stream, turns[:1])
    load(tmp_path).set_query("What is the score?")
    with pytest.raises(SnapshotError, match="another process"):
        before.set_query("Who has the ball?")
    assert load(tmp_path).request.query == "What is the score?"


def test_an_invalid_session_is_refused_and_skipped(tmp_path):
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "session.json").write_text('{"id": "../elsewhere", "owner": "local"}')
    with pytest.raises(SnapshotError, match=f"the stored session {ID} cannot be read"):
        load(tmp_path)
    assert stored_sessions(tmp_path) == []
