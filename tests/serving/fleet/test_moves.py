"""Sessions on two replicas, and their moves when one leaves or fails."""

import shutil
import threading
import time

import httpx
import pytest
from running_fleet import SECRET, PushedSession, running_fleet
from running_server import KEY, MATCH, OTHER_KEY, error_of

from streamingvlm import StreamingSession
from streamingvlm.serving.server_config import AllowedSources, ServerConfig, ServerLimits


@pytest.fixture
def two(pitch, tmp_path):
    """Start a frontend with two replicas, a and b."""

    def start(*names, limits=None, **config):
        chosen = ServerLimits(**{"requests_per_s": 10_000, "burst_requests": 10_000, **(limits or {})})
        return running_fleet(pitch, ServerConfig(limits=chosen, **config), tmp_path, *(names or ("a", "b")))

    return start


def counted(server, name: str) -> dict[str, float]:
    """A metric by replica."""
    rows = [row for row in server.http.get("/metrics").text.splitlines() if row.startswith(name)]
    return {row.split('replica="')[1].split('"')[0]: float(row.split()[-1]) for row in rows}


def test_sessions_are_spread_over_the_replicas_and_stay_there(two, match_jpegs, unmoved):
    with two() as server:
        first, second = (PushedSession(server, match_jpegs) for _ in range(2))
        assert {server.replica_of(watched.id) for watched in (first, second)} == {"a", "b"}
        first.push(4)
        second.push(3)
        first.wait_for_lines(4)
        second.wait_for_lines(3)
        had = {server.replica_of(first.id): 4, server.replica_of(second.id): 3}
        assert counted(server, "streamingvlm_lines_total") == {"frontend": 0, **had}
        answer = server.http.post(f"{first.path}/questions", json={"question": "What is the score?"})
        assert answer.json()["time_s"] == 4
        assert server.http.get(f"{first.path}/frame").content.startswith(b"\xff\xd8")
        listed = server.http.get("/v1/sessions").json()["data"]
        assert [(entry["id"], entry["num_lines"]) for entry in listed] == [(first.id, 4), (second.id, 3)]
        assert (first.finish(), second.finish()) == (unmoved[:4], unmoved[:3])


def test_sessions_of_a_leaving_replica_move(two, match_jpegs, unmoved):
    with two() as server:
        watched = [PushedSession(server, match_jpegs) for _ in range(2)]
        for session in watched:
            session.push(3)
        leaving = threading.Thread(target=server.leave, args=("a",))
        leaving.start()
        for session in watched:
            session.push(9)
            assert session.finish() == unmoved[:9]
        leaving.join()
        assert {server.replica_of(session.id) for session in watched} == {"b"}


def test_a_replica_that_is_cut_off_cannot_disturb_its_moved_sessions(two, match_jpegs, unmoved):
    with two() as server:
        session = PushedSession(server, match_jpegs)
        name = server.replica_of(session.id)
        session.push(4)
        session.wait_for_lines(2)
        server.cut_off(name)
        session.push(9)
        assert session.finish() == unmoved[:9]
        assert server.replica_of(session.id) != name


def test_the_newest_query_moves_with_the_session(two, match_jpegs):
    with two() as server:
        session = PushedSession(server, match_jpegs)
        session.push(2)
        session.wait_for_lines(2)
        assert server.http.patch(session.path, json={"query": "Who leads?"}).json()["query"] == "Who leads?"
        server.leave(server.replica_of(session.id))
        assert server.http.get(session.path).json()["query"] == "Who leads?"
        session.push(4)
        assert len(session.finish()) == 4


def test_a_file_continues_at_its_position(two, pitch):
    said_before = MATCH.with_suffix(".txt").read_text().strip()
    lines = StreamingSession(pitch, previous_text=said_before).stream(MATCH)
    expected = [line.text for _, line in zip(range(12), lines, strict=False)]
    with two(allowed=AllowedSources(folder=MATCH.parent)) as server:
        session = server.open(source={"file": "match.mp4"}, previous_text=said_before)
        heard = []
        with server.socket(f"/v1/sessions/{session}/commentary") as socket:
            import json

            for message in map(json.loads, socket):
                if message["type"] == "line":
                    heard.append(message)
                if len(heard) == 4 and server.replica_of(session) in server.replicas and len(server.replicas) == 2:
                    threading.Thread(target=server.leave, args=(server.replica_of(session),)).start()
                if len(heard) == 12:
                    break
        assert [line["text"] for line in heard] == expected
        assert [line["id"] for line in heard] == list(range(1, 13))


def test_a_session_waits_for_a_replica_with_room(two, match_jpegs, unmoved):
    with two("a") as server:
        session = PushedSession(server, match_jpegs)
        session.push(2)
        session.wait_for_lines(2)
        server.leave("a")
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.http.get(session.path)))
        asking.start()
        while server.http.get("/ready").status_code == 200:
            time.sleep(0.05)
        server.start("c")
        session.push(4)
        assert session.finish() == unmoved[:4]
        asking.join()
        assert answers[0].json()["id"] == session.id


def test_a_full_replica_is_skipped_and_a_full_fleet_refuses(two):
    with two(limits={"max_sessions": 2}) as server:
        sessions = [server.open() for _ in range(4)]
        assert sorted(server.replica_of(session) for session in sessions) == ["a", "a", "b", "b"]
        refused = server.http.post("/v1/sessions", json={})
        assert refused.status_code == 429
        assert "limit" in error_of(refused)
        server.http.delete(f"/v1/sessions/{sessions[0]}")
        while server.http.post("/v1/sessions", json={}).status_code != 201:
            time.sleep(0.1)


def test_a_session_without_its_folder_is_reported_as_lost(two, match_jpegs, tmp_path):
    with two() as server:
        session = PushedSession(server, match_jpegs)
        session.push(2)
        session.wait_for_lines(2)
        shutil.rmtree(tmp_path / session.id)
        server.cut_off(server.replica_of(session.id))
        assert "is lost" in session.end["reason"]
        assert session.end["last_id"] == 2
        answer = server.http.get(session.path)
        assert (answer.status_code, "open another" in error_of(answer)) == (410, True)


def test_stored_sessions_resume_at_the_next_start(two, match_jpegs, unmoved):
    with two() as server:
        session = PushedSession(server, match_jpegs)
        session.push(4)
        session.wait_for_lines(4)
    with two("c") as server:
        again = PushedSession(server, match_jpegs, session=session.id, after=4)
        again.push(8)
        assert [line["text"] for line in session.lines] + again.finish() == unmoved[:8]


def test_sessions_belong_to_their_key_and_replicas_serve_their_frontend_only(two):
    with two(api_keys=(KEY, OTHER_KEY)) as server:
        session = server.open()
        path = f"/v1/sessions/{session}"
        others = {"Authorization": f"Bearer {OTHER_KEY}"}
        for method, name in (("GET", ""), ("DELETE", ""), ("POST", "/finish"), ("GET", "/commentary")):
            assert server.http.request(method, path + name, headers=others).status_code == 404
        assert server.http.get(path).status_code == 200
        replica = server.replicas[server.replica_of(session)].url
        for headers in ({}, server.http.headers, {"x-frontend-secret": "guessed"}):
            for name in (path, "/replica", "/metrics", "/health"):
                assert httpx.get(replica + name, headers=headers).status_code == 401
        assert httpx.get(f"{replica}/replica", headers={"x-frontend-secret": SECRET}).status_code == 200
        for escape in (f"{path}/../../replica", f"{path}/..%2F..%2Freplica", "/replica", f"{path}%2F..%2F..%2Freplica"):
            assert server.http.get(escape).status_code == 404


def test_requests_without_a_session_go_to_any_replica(two):
    with two() as server:
        assert server.http.get("/v1/models").json()["data"][0]["id"] == "pitch"
        assert server.http.get("/v1/settings").json()["object"] == "settings"
        assert "<title>" in server.http.get("/").text
        asked = {"model": "pitch", "messages": [{"role": "user", "content": "nothing to see"}], "stream": True}
        refused = server.http.post("/v1/chat/completions", json=asked)
        assert refused.status_code == 400
        assert error_of(refused)
