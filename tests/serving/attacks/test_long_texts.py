"""Texts whose tokens cost far more than their characters: refused with both numbers beside an undisturbed session."""

import pytest
from running_server import error_of
from undisturbed_session import undisturbed

pytestmark = pytest.mark.attacks

LONG = "看" * 8000  # three tokens a character in the embedded tokenizer
TOLD = "tokens, at most 2,048 are allowed; shorten it"


def test_long_texts_are_refused_beside_a_session(server, pitch, match_jpegs):
    with undisturbed(server, pitch, match_jpegs):
        session = server.open(source={"push": True})
        requests = [
            ("POST", f"/v1/sessions/{session}/questions", {"question": LONG}),
            ("PATCH", f"/v1/sessions/{session}", {"query": LONG}),
            ("POST", "/v1/sessions", {"query": LONG}),
            ("POST", "/v1/sessions", {"previous_text": LONG}),
            ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 60_000}]}),
            ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": LONG[:700]}] * 4}),
        ]
        for method, path, body in requests:
            refused = server.http.request(method, path, json=body)
            assert refused.status_code == 400 and TOLD in error_of(refused), refused.text
        assert server.http.get(f"/v1/sessions/{session}").json()["query"] == ""


@pytest.mark.parametrize(
    "values", [b"{}," * 1_200_000, b"[]," * 7_000_000, b'{"type":"text"},' * 9_000], ids=["parts", "lists", "few parts"]
)
def test_many_small_values_are_refused_beside_a_session(server, pitch, match_jpegs, values):
    body = b'{"messages":[{"role":"user","content":[' + values + b"{}]}]}"
    with undisturbed(server, pitch, match_jpegs):
        refused = server.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert refused.status_code in (400, 413), refused.text
        assert "more than 50,000 values" in refused.text or "at most 2048 items" in refused.text, refused.text
        path = f"/v1/sessions/{server.open()}/frames"
        refused = server.http.patch(path, content=body[:4_000_000], headers={"content-type": "application/json"})
        assert refused.status_code == 413


def test_a_query_that_the_operators_memory_cannot_hold_is_refused_and_the_session_goes_on(serving, pitch, match_jpegs):
    with serving(limits={"max_sessions": 2, "max_cache_bytes": 2 * 7_600_000}) as server:
        first, second = (server.open(source={"push": True}, lag="wait") for _ in range(2))
        refused = server.http.patch(f"/v1/sessions/{first}", json={"query": "Who has the ball? " * 100})
        assert refused.status_code == 503 and "memory for sessions is full" in error_of(refused)
        for session in (first, second):
            for number, jpeg in enumerate(match_jpegs[:4]):
                server.http.post(f"/v1/sessions/{session}/frames?time_s={number / 2}", content=jpeg)
            server.http.post(f"/v1/sessions/{session}/finish")
            lines, end = server.lines(session)
            assert lines and end["reason"] == "finished"
