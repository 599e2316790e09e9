"""Sessions by REST: open, list, inspect, ask, end; limits and isolation."""

import json
import struct
import threading
import time

import pytest
from running_server import MATCH, error_of, held, turns_of

from streamingvlm import StreamingSession
from streamingvlm.serving.auth import LOCAL_OWNER


@pytest.fixture(scope="module")
def with_folder(serving):
    from streamingvlm.serving.server_config import AllowedSources

    with serving(allowed=AllowedSources(folder=MATCH.parent)) as server:
        yield server


def push(server, session, jpegs, start_s=0):
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for index, jpeg in enumerate(jpegs):
            socket.send(struct.pack(">d", start_s + index / 2) + jpeg)
        server.wait_for(session, start_s + len(jpegs) // 2)


def texts_of(server, session):
    server.http.post(f"/v1/sessions/{session}/finish")
    return [line["text"] for line in server.lines(session)[0]]


def test_a_session_is_opened_listed_inspected_and_deleted(serving):
    with serving() as server:
        opened = server.http.post("/v1/sessions", json={"query": "Who leads?", "lag": "coalesce"}).json()
        assert (opened["status"], opened["query"], opened["lag"], opened["fps"]) == (
            "live",
            "Who leads?",
            "coalesce",
            2.0,
        )
        listed = server.http.get("/v1/sessions").json()["data"]
        assert [entry["id"] for entry in listed] == [opened["id"]]
        path = f"/v1/sessions/{opened['id']}"
        assert server.http.get(path).json()["state"]["cache"]["capacity_tokens"] > 0
        assert server.http.delete(path).status_code == 204
        server.lines(opened["id"])
        ended = server.http.get(path).json()
        assert (ended["status"], ended["reason"]) == ("ended", "deleted")


def test_a_file_of_the_operators_folder_is_watched_as_on_the_command_line(with_folder, pitch):
    session = with_folder.open(
        source={"file": "match.mp4"}, previous_text=MATCH.with_suffix(".txt").read_text().strip()
    )
    expected = StreamingSession(pitch, previous_text=MATCH.with_suffix(".txt").read_text().strip()).stream(MATCH)
    lines = []
    with with_folder.socket(f"/v1/sessions/{session}/commentary") as socket:
        while len(lines) < 6:
            message = json.loads(socket.recv(timeout=60))
            if message["type"] == "line":
                lines.append(message["text"])
    assert lines == [line.text for _, line in zip(range(6), expected, strict=False)]
    assert any(lines)
    with_folder.http.delete(f"/v1/sessions/{session}")


@pytest.mark.parametrize("name", ["../pitch/match.mp4", "/etc/passwd", "..", "none.mp4"])
def test_a_file_elsewhere_is_not_found(with_folder, name):
    response = with_folder.http.post("/v1/sessions", json={"source": {"file": name}})
    expected = 201 if name == "../pitch/match.mp4" else 404
    assert response.status_code == expected, response.text


def test_an_error_about_a_file_does_not_reveal_its_folder(with_folder):
    response = with_folder.http.post("/v1/sessions", json={"source": {"file": "tokenizer.json"}})
    assert response.status_code == 400
    assert str(MATCH.parent) not in error_of(response)


def test_files_and_addresses_are_refused_by_default(server):
    for source in ({"file": "match.mp4"}, {"url": "http://127.0.0.1/match.mp4"}):
        response = server.http.post("/v1/sessions", json={"source": source})
        assert response.status_code == 403
        assert "operator" in error_of(response)


def test_settings_may_ask_for_less_and_are_used(server, match_jpegs):
    session = server.open(lag="wait", cache={"vision_window_s": 2, "turn_window_s": 2}, sampling={"max_new_tokens": 1})
    push(server, session, match_jpegs[:8])
    lines = server.http.get(f"/v1/sessions/{session}").json()
    vision = [span for span in lines["state"]["cache"]["spans"] if span[0] == "vision"]
    assert len({span[2] for span in vision}) == 2
    assert lines["state"]["num_tokens"] == 4
    assert (
        lines["state"]["cache"]["capacity_tokens"]
        < server.http.get(f"/v1/sessions/{server.open()}").json()["state"]["cache"]["capacity_tokens"]
    )


def test_the_number_of_sessions_is_limited(serving):
    with serving(limits={"max_sessions": 2}) as server:
        first = server.open()
        server.open()
        response = server.http.post("/v1/sessions", json={})
        assert response.status_code == 429
        assert "2 sessions and clips are open, which is the limit" in error_of(response)
        assert int(response.headers["Retry-After"]) >= 1
        server.http.delete(f"/v1/sessions/{first}")
        server.lines(first)
        server.open()


def test_concurrent_requests_do_not_exceed_the_session_limit(serving):
    with serving(limits={"max_sessions": 3}) as server:
        statuses = []

        def ask():
            statuses.append(server.http.post("/v1/sessions", json={}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [201] * 3 + [429] * 9


def test_an_idle_session_ends_and_is_removed(serving):
    with serving(limits={"idle_s": 0.2, "retention_s": 0.2}) as server:
        session = server.open()
        _, end = server.lines(session)
        assert end["reason"] == "no frame came for 0.2 s"
        deadline_s = time.monotonic() + 30
        while server.http.get(f"/v1/sessions/{session}").status_code != 404:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_a_session_has_a_time_limit(serving, match_jpegs):
    with serving(limits={"session_s": 0.5}) as server:
        session = server.open()
        server.http.post(f"/v1/sessions/{session}/frames", content=match_jpegs[0])
        lines, end = server.lines(session)
        assert end["reason"] == "sessions end after 0.5 s"
        assert len(lines) == 1


def test_one_failing_session_ends_alone(serving, match_jpegs):
    with serving() as server:
        failing, other = server.open(lag="wait"), server.open(lag="wait")
        stream = server.app.state.manager.find(failing, "local")._stream
        stream.session._stream.config = None
        push_two = struct.pack(">d", 0.0) + match_jpegs[0], struct.pack(">d", 0.5) + match_jpegs[1]
        for session in (failing, other):
            with server.socket(f"/v1/sessions/{session}/frames") as socket:
                for message in push_two:
                    socket.send(message)
                if session == failing:
                    _, end = server.lines(failing)
        assert end["reason"] == "the server failed; see its log"
        assert server.wait_for(other, 1)["status"] == "live"


def test_two_sessions_give_the_lines_of_each_alone(server, match_jpegs):
    sessions = [server.open(lag="wait") for _ in range(2)]
    starts = [0, 12]
    threads = [
        threading.Thread(target=push, args=(server, session, match_jpegs[start : start + 12]))
        for session, start in zip(sessions, starts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session, start in zip(sessions, starts, strict=True):
        together = texts_of(server, session)
        alone = server.open(lag="wait")
        push(server, alone, match_jpegs[start : start + 12])
        assert texts_of(server, alone) == together


def wait_for_question(server, session):
    while not server.app.state.manager.find(session, LOCAL_OWNER).num_questions:
        time.sleep(0.01)


def test_a_question_does_not_change_the_stream(server, pitch, match_jpegs):
    session, alone = server.open(lag="wait"), StreamingSession(pitch)
    first, second, third = turns_of(match_jpegs[:6])
    push(server, session, match_jpegs[:4])
    asked = {"question": "Who leads?", "max_new_tokens": 999}
    response = server.http.post(f"/v1/sessions/{session}/questions", json=asked)
    texts = [alone.step(second).text for second in (first, second)]
    assert response.json() == {
        "object": "answer",
        "question": "Who leads?",
        "answer": alone.ask("Who leads?", max_new_tokens=256),
        "time_s": 2.0,
    }
    push(server, session, match_jpegs[4:6], start_s=2)
    assert texts_of(server, session) == [*texts, alone.step(third).text]


def test_pending_questions_are_limited(serving, match_jpegs):
    with serving(limits={"max_questions": 1}) as server:
        session, answers = server.open(), []
        path = f"/v1/sessions/{session}/questions"
        first = threading.Thread(target=lambda: answers.append(server.http.post(path, json={"question": "?"})))
        with held(server, match_jpegs[:2]):
            first.start()
            wait_for_question(server, session)
            response = server.http.post(path, json={"question": "?"})
            assert response.status_code == 429
            assert "wait already" in error_of(response)
        first.join()
        assert answers[0].status_code == 200


def test_a_pending_question_fails_when_its_session_is_deleted(server, match_jpegs):
    session, answers = server.open(), []
    path = f"/v1/sessions/{session}"
    asking = threading.Thread(
        target=lambda: answers.append(server.http.post(f"{path}/questions", json={"question": "Who leads?"}))
    )
    deleting = threading.Thread(target=lambda: answers.append(server.http.delete(path)))
    with held(server, match_jpegs[:2]):
        asking.start()
        wait_for_question(server, session)
        deleting.start()
        while not server.app.state.manager.find(session, LOCAL_OWNER)._stream.session.is_closed:
            time.sleep(0.01)
    asking.join()
    deleting.join()
    assert {answer.status_code for answer in answers} == {204, 409}


def test_the_query_may_change(server, pitch, match_jpegs):
    session, alone = server.open(query="Who has the ball?", lag="wait"), StreamingSession(pitch)
    alone.query = "Who has the ball?"
    push(server, session, match_jpegs[:4])
    response = server.http.patch(f"/v1/sessions/{session}", json={"query": "Who leads?"})
    assert response.status_code == 200
    assert response.json()["query"] == "Who leads?"
    push(server, session, match_jpegs[4:8], start_s=2)
    runs = server.http.get(f"/v1/sessions/{session}").json()["state"]["cache"]["spans"]
    assert [span[0] for span in runs].count("query") == 1
    texts = []
    for number, second in enumerate(turns_of(match_jpegs[:8])):
        alone.query = "Who has the ball?" if number < 2 else "Who leads?"
        texts.append(alone.step(second).text)
    assert texts_of(server, session) == texts


def test_a_session_beyond_the_memory_is_refused_until_another_ends(serving, pitch):
    one = StreamingSession(pitch)
    with serving(limits={"max_cache_bytes": int(2.5 * one.cache_bytes)}) as server:
        first, _ = server.open(), server.open()
        response = server.http.post("/v1/sessions", json={})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert "memory for sessions is full" in error_of(response)
        smaller = {"vision_window_s": 2, "turn_window_s": 2, "text_window_tokens": 16, "text_sink_tokens": 16}
        server.open(cache=smaller)
        assert server.http.delete(f"/v1/sessions/{first}").status_code == 204
        server.open()


def test_metrics_of_sessions_lines_and_caches(serving, match_jpegs):
    with serving() as server:
        session = server.open(lag="wait")
        push(server, session, match_jpegs[:8])
        metrics = {
            name: float(value)
            for name, value in (
                row.rsplit(" ", 1) for row in server.http.get("/metrics").text.splitlines() if row[0] != "#"
            )
        }
        state = server.http.get(f"/v1/sessions/{session}").json()["state"]
        assert metrics["streamingvlm_sessions"] == metrics["streamingvlm_sessions_opened_total"] == 1
        assert metrics["streamingvlm_lines_total"] == metrics["streamingvlm_frame_to_text_seconds_count"] == 4
        assert metrics["streamingvlm_generated_tokens_total"] == state["num_tokens"]
        assert metrics["streamingvlm_cache_tokens"] == state["cache"]["num_tokens"]
        assert metrics['streamingvlm_frames_total{outcome="accepted"}'] == 8
        assert 0 < metrics["streamingvlm_cache_fill_max"] <= 1


def test_a_null_means_that_the_field_is_absent(server):
    nulls = dict.fromkeys(["source", "query", "previous_text", "lag", "cache", "sampling"])
    response = server.http.post("/v1/sessions", json=nulls)
    assert response.status_code == 201
    server.http.delete(f"/v1/sessions/{response.json()['id']}")


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [("GET", "/v1/nothing", "there is nothing at /v1/nothing"), ("PUT", "/v1/sessions", "PUT is not allowed at")],
)
def test_a_wrong_address_is_named(server, method, path, told):
    assert told in error_of(server.http.request(method, path))
