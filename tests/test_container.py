"""The container files: the server is reachable from this machine alone, with a key; the image has its files."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SERVICE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["streamingvlm"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_port_is_published_on_loopback_alone():
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])


def test_the_key_comes_from_the_environment_and_compose_stops_without_one():
    assert re.fullmatch(r"\$\{STREAMINGVLM_API_KEY:\?.+\}", SERVICE["environment"]["STREAMINGVLM_API_KEY"])


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"pyproject.toml", "streamingvlm", "configs"} <= set(copied) <= sent
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_has_the_torch_of_the_makefile():
    versions = [
        re.search(r"TORCH_VERSION ?:?= ?([\d.]+)", text)[1] for text in (DOCKERFILE, (ROOT / "Makefile").read_text())
    ]
    assert versions[0] == versions[1]


def test_ci_calls_the_script_of_the_repository():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
