"""Clients without a key do no harm to one with a key at the same address."""

import httpx
import pytest
from running_server import KEY

pytestmark = pytest.mark.attacks


def test_requests_without_a_key_do_not_lock_a_user_out(serving):
    with serving(api_keys=(KEY,), limits={"requests_per_s": 0.1, "burst_requests": 8}) as server:
        with httpx.Client(base_url=server.url) as stranger:
            answers = [stranger.get("/v1/sessions").status_code for _ in range(12)]
        assert answers == [401] * 8 + [429] * 4
        assert server.http.get("/v1/sessions").status_code == 200


def test_a_foreign_page_does_not_lock_the_user_out(serving):
    with serving(limits={"requests_per_s": 0.1, "burst_requests": 8}) as server:
        for _ in range(12):
            server.http.post("/v1/sessions", json={}, headers={"Origin": "https://elsewhere.example"})
            server.http.get("/health", headers={"Host": "elsewhere.example"})
        assert server.http.get("/v1/sessions").status_code == 200


def test_a_large_body_is_for_pushed_frames_alone(server):
    answer = server.http.patch("/v1/sessions/frames", content=b"[" * 70_000)
    assert answer.status_code == 413
