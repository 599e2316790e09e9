"""Allowed files and addresses, and attempts to get around the check."""

import os
import socket

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.serving.access_policy import HostPolicy, allowed_file, list_videos
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.server_config import AllowedSources

PUBLIC = "93.184.215.14"
NAMES = {
    "public.example": [PUBLIC],
    "private.example": ["10.0.0.7"],
    "home.example": ["127.0.0.1"],
    "home6.example": ["::1"],
    "metadata.example": ["169.254.169.254"],
    "both.example": [PUBLIC, "192.168.1.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "six.example": ["2002:7f00:1::"],
    "nat.example": ["64:ff9b::a00:1"],
    "scoped.example": ["fe80::1%eth0"],
    "cgnat.example": ["100.64.0.1"],
    "camera.lan": ["192.168.1.20"],
}


def resolve(host, port):
    if host not in NAMES:
        raise socket.gaierror(-2, "Name or service not known")
    return NAMES[host]


def addresses(*hosts):
    return HostPolicy(AllowedSources(hosts=hosts), resolve)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "public.example"])
def test_a_name_that_resolves_to_a_private_address_is_refused(name):
    with pytest.raises(ApiError, match="private address") as refusal:
        addresses("*").check_url(f"http://{name}/video.mp4")
    assert refusal.value.status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_private_address_is_refused(scheme, host):
    with pytest.raises(ApiError, match="private address"):
        addresses("*").check_url(f"{scheme}://{host}:8080/")


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "0", "127.0.0.1.", "1.2.3.4.5", "127.0.0.0x1"],
)
def test_a_number_that_a_resolver_might_accept_is_not_resolved(host):
    def ask_nobody(host, port):
        raise AssertionError(f"{host} was looked up")

    with pytest.raises(ApiError) as refusal:
        HostPolicy(AllowedSources(hosts=("*",)), ask_nobody).check_url(f"http://{host}/")
    assert refusal.value.status_code in (400, 403)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///video.mp4",
        "http://public.example:99999/",
        "http://public.example:x/",
        "http://pub lic.example/",
        "http://public.example\\@127.0.0.1/",
        "http://public.example\r\nHost: 127.0.0.1/",
        "http://[::1/",
        "//public.example/",
        "public.example",
        "file:///etc/passwd",
        "concat:http://public.example/a",
        "subfile,,start,0:/etc/passwd",
        "data:video/mp4;base64,AAAA",
        "gopher://public.example/",
        "http://ünicode.example/",
        "http://%31%32%37.0.0.1/",
        "http://-a.example/",
    ],
)
def test_an_invalid_url_is_refused(url):
    with pytest.raises(ApiError) as refusal:
        addresses("*").check_url(url)
    assert refusal.value.status_code == 400
    assert "\n" not in refusal.value.detail


def test_user_and_port_do_not_hide_the_host():
    with pytest.raises(ApiError, match="private address"):
        addresses("*").check_url("http://public.example@127.0.0.1/")
    with pytest.raises(ApiError, match="private address"):
        addresses("*").check_url("http://public.example:80@169.254.169.254:80/#public.example")


def test_a_public_name_is_resolved_to_the_address_that_was_checked():
    assert addresses("*").resolve("Public.Example.", 80).addresses == (PUBLIC,)
    assert addresses("*").check_url("https://public.example/live.m3u8").hostname == "public.example"


@pytest.mark.parametrize("host", ["private.example", "evilpublic.example", "public.example.evil.example", "example"])
def test_a_host_that_is_not_allowed_is_refused(host):
    NAMES.setdefault(host, [PUBLIC])
    with pytest.raises(ApiError, match="not among the hosts"):
        addresses("public.example", "*.cameras.example").check_url(f"http://{host}/")


def test_a_wildcard_matches_subdomains_and_not_the_name_itself():
    NAMES["a.b.cameras.example"] = NAMES["cameras.example"] = [PUBLIC]
    allowed = addresses("*.cameras.example")
    assert allowed.resolve("a.b.cameras.example", 80).addresses == (PUBLIC,)
    with pytest.raises(ApiError, match="not among"):
        allowed.resolve("cameras.example", 80)


def test_a_host_that_is_named_in_full_may_be_private():
    assert addresses("camera.lan").resolve("camera.lan", 554).addresses == ("192.168.1.20",)
    assert addresses("10.0.0.5").resolve("10.0.0.5", 554).addresses == ("10.0.0.5",)
    assert addresses("[::1]").check_url("http://[::1]:8080/").port == 8080


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "rtmp"])
def test_protocols_whose_redirects_are_not_checked_need_a_named_host(scheme):
    with pytest.raises(ApiError, match="named in full"):
        addresses("*").check_url(f"{scheme}://public.example/live")
    assert addresses("*", "public.example").check_url(f"{scheme}://public.example/live").scheme == scheme


def test_by_default_no_source_is_allowed():
    with pytest.raises(ApiError, match="watches no addresses"):
        addresses().check_url("http://public.example/")
    with pytest.raises(ApiError, match="watches no files"):
        allowed_file("match.mp4", AllowedSources())


def test_an_unknown_name_is_reported():
    with pytest.raises(ApiError, match=r"nowhere\.example cannot be found"):
        addresses("*").check_url("http://nowhere.example/")


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for name in ("match.mp4", "below/other.mp4"):
        (folder / name).write_bytes(b"video")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "videos-of-others").mkdir()
    (tmp_path / "videos-of-others" / "x.mp4").write_bytes(b"x")
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "inside.mp4").symlink_to(folder / "match.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.mark.parametrize("name", ["match.mp4", "below/other.mp4", "./below/../match.mp4", "inside.mp4"])
def test_a_file_below_the_folder_is_found(videos, name):
    assert allowed_file(name, AllowedSources(folder=videos)).read_bytes() == b"video"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4",
        "below/../../secret.mp4",
        "../videos-of-others/x.mp4",
        "/etc/passwd",
        "link.mp4",
        "loop",
        "below",
        ".",
        "",
        "pipe.mp4",
        "none.mp4",
        "match.mp4\0.txt",
        "x" * 5000,
        "..\\secret.mp4",
        "%2e%2e/secret.mp4",
        "~/secret.mp4",
        "\udcff.mp4",
    ],
)
def test_files_outside_the_folder_are_not_found_and_not_revealed(videos, name):
    with pytest.raises(ApiError, match="there is no video") as refusal:
        allowed_file(name, AllowedSources(folder=videos))
    assert refusal.value.status_code == 404
    assert "secret" not in refusal.value.detail.replace(repr(name[:100]), "")


def test_allowed_sources_are_validated(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        AllowedSources(folder=tmp_path / "none")
    for host in ("http://x.example", "x.example:80", "x.example/path"):
        with pytest.raises(ConfigError, match="host's name alone"):
            AllowedSources(hosts=(host,))


def test_the_listed_videos_are_those_that_a_session_may_name(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "videos"
    for path in (outside / "secret.mp4", folder / "b" / "game.MP4", folder / "a.mkv", folder / "a.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "link.mp4").symlink_to(outside / "secret.mp4")
    (folder / "below").symlink_to(outside)
    (folder / "broken.mp4").symlink_to(folder / "gone.mp4")
    (folder / "copy.mp4").symlink_to(folder / "a.mkv")
    assert list_videos(folder) == ["a.mkv", "b/game.MP4", "copy.mp4"]
    for name in list_videos(folder):
        assert allowed_file(name, AllowedSources(folder=folder)).is_file()
