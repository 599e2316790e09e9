"""Commentary by WebSocket and server-sent events: every line once and in order, from any position."""

import json
import struct
import threading

import pytest
from running_server import error_of
from websockets.exceptions import InvalidStatus


@pytest.fixture(scope="module")
def told(server, match_jpegs):
    """A session that has ended, and its lines as a listener by WebSocket had them."""
    session = server.open(lag="wait")
    listening = threading.Thread(target=lambda: heard.extend(server.lines(session)[0]))
    heard: list[dict] = []
    listening.start()
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for index, jpeg in enumerate(match_jpegs[:16]):
            socket.send(struct.pack(">d", index / 2) + jpeg)
        socket.send(json.dumps({"type": "finish"}))
    listening.join(120)
    return session, heard


def test_a_listener_by_socket_gets_every_line_once_and_in_order(told):
    _, lines = told
    assert [line["id"] for line in lines] == list(range(1, 9))
    assert [line["start_s"] for line in lines] == list(range(8))


def test_server_sent_events_have_the_same_lines(server, told):
    session, lines = told
    events = list(server.events(session))
    assert [data for kind, _, data in events if kind == "line"] == [
        {name: value for name, value in line.items() if name != "type"} for line in lines
    ]
    assert [number for kind, number, _ in events if kind == "line"] == [str(line["id"]) for line in lines]
    assert events[-1][0] == "end"
    assert events[-1][2] == {"reason": "finished", "last_id": 8}


@pytest.mark.parametrize("last", [0, 3, 8])
def test_a_client_that_reconnects_continues_after_its_last_line(server, told, last):
    session, _ = told
    by_header = [
        data["id"] for kind, _, data in server.events(session, **{"Last-Event-ID": str(last)}) if kind == "line"
    ]
    assert by_header == list(range(last + 1, 9))
    assert [line["id"] for line in server.lines(session, after=last)[0]] == by_header


def test_an_invalid_event_id_is_refused(server, told):
    response = server.http.get(f"/v1/sessions/{told[0]}/commentary", headers={"Last-Event-ID": "seven"})
    assert response.status_code == 400
    assert "Last-Event-ID" in error_of(response)


def test_the_cache_spans_of_the_state_add_up(server, told):
    states = [data for kind, _, data in server.events(told[0]) if kind == "state"]
    cache = states[-1]["cache"]
    assert sum(span[1] for span in cache["spans"]) == pytest.approx(cache["num_tokens"], abs=2)
    assert {span[0] for span in cache["spans"]} >= {"prompt", "vision", "text"}


def test_a_slow_listener_gets_the_number_of_missed_lines(serving, match_jpegs):
    with serving(limits={"backlog_lines": 3}) as server:
        session = server.open(lag="wait")
        with server.socket(f"/v1/sessions/{session}/frames") as socket:
            for index, jpeg in enumerate(match_jpegs[:12]):
                socket.send(struct.pack(">d", index / 2) + jpeg)
            server.wait_for(session, 6)
            socket.send(json.dumps({"type": "finish"}))
        events = list(server.events(session))
        assert events[0] == ("gap", None, {"num_missed": 3, "next_id": 4})
        assert [data["id"] for kind, _, data in events if kind == "line"] == [4, 5, 6]


def test_listeners_of_a_session_are_limited(serving):
    with serving(limits={"max_subscribers": 1}) as server:
        session = server.open()
        with server.socket(f"/v1/sessions/{session}/commentary") as first:
            response = server.http.get(f"/v1/sessions/{session}/commentary")
            assert response.status_code == 429
            assert "1 clients listen to this session" in error_of(response)
            with pytest.raises(InvalidStatus, match="429"), server.socket(f"/v1/sessions/{session}/commentary"):
                pass
            server.http.delete(f"/v1/sessions/{session}")
            assert [json.loads(message)["type"] for message in first] == ["end"]


def test_a_socket_to_an_unknown_session_is_refused_before_it_opens(server):
    with pytest.raises(InvalidStatus, match="404"), server.socket("/v1/sessions/ses_none/commentary"):
        pass
