"""Random requests from the server's OpenAPI schema: errors are one line, and never a 500."""

import random

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from running_server import KEY, OTHER_KEY
from schemathesis import GenerationMode
from undisturbed_session import undisturbed

NUM_SESSION_REQUESTS = 25
LIMITS = {"max_sessions": 6, "idle_s": 8.0, "retention_s": 5.0, "request_s": 5.0, "max_body_bytes": 4096}
ANSWER_S = 60


class Attack:
    """Sends random requests to the operations of the schema, half of them to an existing session."""

    def __init__(self, server):
        self.server = server
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Bearer {KEY}"
        # What a client may set by itself would otherwise come between the test and its key.
        self.http.trust_env = False
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=self.http.headers)
        self.operations = [found.ok() for found in schema.get_all_operations()]
        self.session = ""
        self.statuses = {}

    @property
    def num_requests(self):
        return sum(self.statuses.values())

    def draw(self, draw):
        if self.num_requests % NUM_SESSION_REQUESTS == 0:
            self.session = self.http.post(f"{self.server.url}/v1/sessions", json={}).json().get("id", self.session)
        operation = draw(st.sampled_from(self.operations))
        mode = draw(st.sampled_from(GenerationMode)) if is_to_be_given(operation) else GenerationMode.POSITIVE
        path = {"session_id": self.session} if "{session_id}" in operation.path and draw(st.booleans()) else None
        return draw(operation.as_strategy(generation_mode=mode, **({"path_parameters": path} if path else {})))

    def send(self, case):
        request = {**case.as_transport_kwargs(base_url=self.server.url), "stream": True, "timeout": ANSWER_S}
        request.pop("session", None)
        with self.http.request(**request) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                body = response.content  # a stream of events is left as soon as it has begun
                check_answer(response, body)
        key = (case.operation.label, response.status_code)
        self.statuses[key] = self.statuses.get(key, 0) + 1


def is_to_be_given(operation):
    return bool(operation.body) or any(True for _ in operation.iter_parameters())


def check_answer(response, body):
    assert response.status_code < 500 or response.status_code == 503, (response.request.url, body)
    if response.status_code >= 400:
        message = response.json()["error"]["message"]
        assert message and "\n" not in message


def attack(server, num_requests, number):
    attacker = Attack(server)

    @seed(number)
    @settings(
        max_examples=num_requests,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def send_one(data):
        attacker.send(attacker.draw(data.draw))

    send_one()
    return attacker.statuses


def send_many(serving, pitch, match_jpegs, num_requests, number):
    with serving(api_keys=(KEY, OTHER_KEY), limits=LIMITS) as server:
        with undisturbed(server, pitch, match_jpegs, OTHER_KEY):
            statuses = attack(server, num_requests, number)
        assert server.http.get("/ready").status_code == 200
    assert sum(statuses.values()) >= num_requests
    seen = {label for label, _ in statuses}
    assert {"POST /v1/sessions", "POST /v1/sessions/{session_id}/frames", "POST /v1/chat/completions"} <= seen
    assert {200, 201, 400, 404} <= {status for _, status in statuses}
    return statuses


def test_some_hundred_requests(serving, pitch, match_jpegs):
    send_many(serving, pitch, match_jpegs, 300, number=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_requests(serving, pitch, match_jpegs):
    number = random.randrange(2**32)
    print(f"seed {number}")
    statuses = send_many(serving, pitch, match_jpegs, 10_000, number)
    print(f"{sum(statuses.values())} requests")
    for (label, status), count in sorted(statuses.items()):
        print(f"{count:6d} {status} {label}")
