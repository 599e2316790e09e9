"""The client against a server that is slow, busy, broken or wrong."""

import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import ChatServer

from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError, EndpointError

KEY = "sk-do-not-tell"


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask a server something; returns the answer, the endpoint and the server."""
    monkeypatch.setenv("TEST_KEY", KEY)

    def asked(reply, *texts, read=str, **settings):
        with ChatServer(reply) as server:
            config = EndpointConfig("m", server.url, "TEST_KEY", **{"timeout_s": 5, "max_retries": 3, **settings})
            endpoint = ChatEndpoint(config, tmp_path / "answers")
            requests = [endpoint.request([("user", text)], max_tokens=50) for text in texts or ["hello"]]
            return [endpoint.ask(request, read) for request in requests], endpoint, server

    return asked


def echo(body, num_before):
    return body["messages"][-1]["content"].upper()


def fails_first(*failures):
    return lambda body, num_before: failures[num_before] if num_before < len(failures) else echo(body, num_before)


def test_an_answer_is_requested_once_and_cached(ask):
    answers, endpoint, server = ask(echo, "hello", "there", "hello")
    assert answers == ["HELLO", "THERE", "HELLO"]
    assert len(server.requests) == 2
    usage = endpoint.usage
    assert (usage.num_requests, usage.num_cached, usage.num_tokens_in, usage.num_tokens_out) == (2, 1, 200, 20)
    answers, _, server = ask(lambda body, n: 500, "hello", "there")
    assert answers == ["HELLO", "THERE"]
    assert server.requests == []


def test_the_request_body_is_as_built(ask):
    _, _, server = ask(echo)
    message = {"role": "user", "content": "hello"}
    assert server.requests == [{"model": "m", "messages": [message], "temperature": 0.0, "max_tokens": 50}]
    assert server.keys == [f"Bearer {KEY}"]
    _, _, server = ask(echo, temperature=None, token_limit_name="max_completion_tokens")
    assert server.requests == [{"model": "m", "messages": [message], "max_completion_tokens": 50}]


@pytest.mark.parametrize("failure", [429, 500, 503, None], ids=["busy", "broken", "overloaded", "cut off"])
def test_temporary_failures_are_retried(ask, failure):
    answers, _, server = ask(fails_first(failure, failure))
    assert answers == ["HELLO"]
    assert len(server.requests) == 3


def test_a_timeout_is_retried(ask):
    def slow_once(body, num_before):
        time.sleep(1.0 if num_before == 0 else 0)
        return "here"

    answers, _, server = ask(slow_once, timeout_s=0.4)
    assert answers == ["here"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("failure", [500, None])
def test_lasting_failures_end_in_one_line_and_keep_earlier_answers(ask, failure):
    def gives_up(body, num_before):
        return failure if body["messages"][0]["content"] == "second" else "fine"

    with pytest.raises(EndpointError, match="run the same command again") as caught:
        ask(gives_up, "first", "second", max_retries=1)
    assert "\n" not in str(caught.value)
    answers, _, server = ask(echo, "first", "second")
    assert answers == ["fine", "SECOND"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("status, remedy", [(401, "TEST_KEY"), (403, "TEST_KEY"), (404, "endpoint.model")])
def test_refusals_are_not_retried_and_name_the_remedy(ask, status, remedy):
    seen = []

    def refuse(body, num_before):
        seen.append(body)
        return status

    with pytest.raises(EndpointError, match=remedy):
        ask(refuse)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "malformed",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": 7}',
        "",
    ],
)
def test_malformed_answers_are_retried_counted_and_not_cached(ask, tmp_path, malformed):
    def read(text):
        if not text:
            raise ValueError("nothing said")
        return text

    answers, endpoint, server = ask(fails_first(malformed), read=read)
    assert answers == ["HELLO"]
    assert len(server.requests) == 2
    assert endpoint.usage.num_malformed == 1
    assert len(list((tmp_path / "answers").rglob("*.json"))) == 1


def test_malformed_answers_are_given_up_after_max_attempts(ask, tmp_path):
    answers, endpoint, server = ask(echo, read=int, max_attempts=2)
    assert answers == [None]
    assert len(server.requests) == 2
    assert endpoint.usage.num_malformed == 2
    assert list((tmp_path / "answers").rglob("*.json")) == []


def test_a_damaged_cache_entry_is_requested_again(ask, tmp_path):
    ask(echo)
    [kept] = (tmp_path / "answers").rglob("*.json")
    kept.write_bytes(kept.read_bytes()[:30])
    answers, _, server = ask(echo)
    assert answers == ["HELLO"]
    assert len(server.requests) == 1
    assert json.loads(kept.read_text())["answer"] == "HELLO"


def test_many_threads_can_share_an_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    with ChatServer(echo) as server:
        endpoint = ChatEndpoint(EndpointConfig("m", server.url, "TEST_KEY"), tmp_path)
        requests = [endpoint.request([("user", f"text {n % 20}")], max_tokens=9) for n in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda request: endpoint.ask(request, str), requests))
    assert answers == [f"TEXT {n % 20}" for n in range(40)]
    assert endpoint.usage.num_requests + endpoint.usage.num_cached == 40


def test_the_key_is_never_shown(ask, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    ask(echo)
    leak = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with pytest.raises(EndpointError, match="Incorrect API key") as caught:
        ask(lambda *_: (401, leak), "another text")
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.json"))


def test_a_key_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="TEST_KEY is not set"):
        ChatEndpoint(EndpointConfig("m", "http://127.0.0.1:1", "TEST_KEY"), tmp_path)
    with ChatServer(echo) as server:
        endpoint = ChatEndpoint(EndpointConfig("m", server.url, api_key_env=None), tmp_path)
        assert endpoint.ask(endpoint.request([("user", "a")], max_tokens=1), str) == "A"


def test_an_unreachable_endpoint_is_reported_in_one_line(tmp_path):
    endpoint = ChatEndpoint(EndpointConfig("m", "http://127.0.0.1:9/v1", api_key_env=None, max_retries=0), tmp_path)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1 cannot be reached"):
        endpoint.ask(endpoint.request([("user", "a")], max_tokens=1), str)


def test_without_the_client_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"pip install \"streamingvlm\[llm\]\""):
        ChatEndpoint(EndpointConfig("m", api_key_env=None), tmp_path)


@pytest.mark.parametrize(
    "settings", [{"model": ""}, {"timeout_s": 0}, {"max_attempts": 0}, {"max_retries": -1}, {"num_parallel": 0}]
)
def test_settings_out_of_range_are_named(settings):
    [name] = settings
    with pytest.raises(ConfigError, match=f"endpoint.{name}"):
        EndpointConfig(**{"model": "m", **settings})


def test_a_cost_needs_both_prices():
    assert EndpointConfig("m").cost_usd(1, 1) is None
    assert EndpointConfig("m", usd_per_million_in=2.0, usd_per_million_out=8.0).cost_usd(500_000, 250_000) == 3.0


def test_a_400_names_its_own_remedy(ask):
    with pytest.raises(EndpointError, match="check the endpoint"):
        ask(lambda body, num_before: 400)


def refuses(*parameters, names="param"):
    """Refuse the first of the parameters that is in a body, as OpenAI's newer models do, or by the message alone."""

    def reply(body, num_before):
        refused = next((name for name in parameters if name in body), None)
        if refused is None:
            return echo(body, num_before)
        error = {"message": f"Unsupported parameter: '{refused}' is not supported with this model."}
        return 400, json.dumps({"error": error | ({"param": refused} if names == "param" else {})}).encode()

    return reply


@pytest.mark.parametrize("names", ["param", "message"])
@pytest.mark.parametrize(
    ("parameters", "sent"),
    [
        (["max_tokens"], {"temperature": 0.0, "max_completion_tokens": 50}),
        (["temperature"], {"max_tokens": 50}),
        (["temperature", "max_tokens"], {"max_completion_tokens": 50}),
    ],
)
def test_a_parameter_that_the_model_refuses_by_name_is_adapted_once(ask, parameters, sent, names):
    answers, _, server = ask(refuses(*parameters, names=names), "hello", "there")
    assert answers == ["HELLO", "THERE"]
    assert len(server.requests) == len(parameters) + 2  # the second question is sent as the model accepts it
    assert [{k: v for k, v in body.items() if k not in ("model", "messages")} for body in server.answered] == [sent] * 2


@pytest.mark.parametrize("parameters", [["model"], ["max_tokens", "max_completion_tokens"]])
def test_another_refusal_ends_in_one_line_that_names_it(ask, parameters):
    with pytest.raises(EndpointError, match=rf"answers 400: .*'{parameters[-1]}'.*; check the endpoint") as caught:
        ask(refuses(*parameters))
    assert "\n" not in str(caught.value)
