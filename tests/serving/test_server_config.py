"""Validation of the server's settings."""

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.serving.auth import ApiKeys, is_loopback_host, is_same_origin
from streamingvlm.serving.server_config import ServerConfig, ServerLimits, is_loopback, limits_from, read_keys

KEY = "k" * 20


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host):
    assert is_loopback(host)
    assert ServerConfig(host=host).api_keys == ()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.example.com", "", "127.0.0.1.example.com"]
)
def test_any_other_host_needs_a_key(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="there is no key"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize("key", ["tiny", "k" * 15, "with space in the middle", "k" * 20 + "\n", "ü" * 20])
def test_a_weak_key_is_refused_even_on_loopback(key):
    with pytest.raises(ConfigError, match="shorter than 16") as error:
        ServerConfig(api_keys=(key,))
    assert key not in str(error.value)


def test_keys_are_read_from_a_file_one_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the camera\n{KEY}\n\n  {KEY[::-1]}x  \n")
    assert read_keys(file) == (KEY, KEY[::-1] + "x")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(file)


def test_each_key_has_an_owner_id_and_wrong_keys_have_none():
    ring = ApiKeys((KEY, "another-key-of-somebody"))
    owners = {ring.owner(KEY), ring.owner("another-key-of-somebody")}
    assert len(owners) == 2
    assert None not in owners
    assert not any(KEY in owner for owner in owners)
    assert [ring.owner(wrong) for wrong in (None, "", KEY[:-1], "ü", "\udcff")] == [None] * 5


def test_without_keys_all_are_one_owner():
    assert ApiKeys(()).owner(None) == ApiKeys(()).owner("any")


@pytest.mark.parametrize(
    "limit, value", [("max_sessions", 0), ("idle_s", 0), ("session_s", -1), ("backlog_lines", -5), ("max_clips", "2")]
)
def test_a_limit_leaves_something(limit, value):
    with pytest.raises(ConfigError, match=limit):
        ServerLimits(**{limit: value})


def test_limits_of_a_file_have_defaults_and_unknown_names_are_refused():
    assert limits_from({"max_sessions": 3, "idle_s": None}) == ServerLimits(max_sessions=3)
    with pytest.raises(ConfigError, match="limits has no 'sessions'"):
        limits_from({"sessions": 3})


@pytest.mark.parametrize(
    "origin, host, own",
    [
        (None, "localhost:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("https://cams.example", "cams.example", True),
        ("http://localhost:8001", "localhost:8000", False),
        ("http://localhost:8000.evil.example", "localhost:8000", False),
        ("null", "localhost:8000", False),
        ("", "localhost:8000", False),
        ("http://[", "localhost:8000", False),
    ],
)
def test_same_origin_means_same_host_and_port(origin, host, own):
    headers = {"host": host, **({} if origin is None else {"origin": origin})}
    assert is_same_origin(headers) is own


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1:80", "[::1]:80", "localhost"])
def test_loopback_host_headers(host):
    assert is_loopback_host(host)


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "0.0.0.0", "[::1", "127.0.0.1:80:90@x"])
def test_other_host_headers(host):
    assert not is_loopback_host(host)
