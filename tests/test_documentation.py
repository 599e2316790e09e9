"""Every code block of the pages runs, or a comment before it says why not: ``<!-- not run: the reason -->``.

Python blocks of a page run in order in one namespace, with the embedded model, beside a few seconds of video. Commands
are checked to their last option: the configuration of a verb is composed, make plans its target, an extra exists.
"""

import os
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from streamingvlm.cli.configurations import compose_config
from streamingvlm.cli.verbs import VERBS
from streamingvlm.pitch import Match, render
from streamingvlm.video.encoder import write_video

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LAUNCHERS = ("torchrun", "accelerate")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the reason that it is not run, "" if it is."""

    language: str
    text: str
    reason: str = ""


@cache
def markdown(page):
    return MarkdownIt().enable("table").parse(page.read_text())


def blocks(page):
    tokens = markdown(page)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            mark = before and before.type == "html_block" and re.match(r"<!-- not run: (.+) -->", before.content)
            yield Block(token.info.strip(), token.content, mark[1] if mark else "")


def inline_commands(page):
    """Our commands in the text and the tables, which are code, too."""
    for token in markdown(page):
        for child in token.children or ():
            if child.type == "code_inline" and re.match(r"(streamingvlm|python -m|torchrun|make) [^.]", child.content):
                yield child.content


def commands(text):
    """The commands of a shell block, each as its words; stages of a pipe are commands of their own."""
    for line in text.replace("\\\n", " ").splitlines():
        words, pipe = shlex.split(line, comments=True), []
        for word in [*words, "|"]:
            if word != "|":
                pipe.append(word)
            elif pipe:
                yield pipe
                pipe = []


def compose_words(command, words):
    compose_config(command.config_name, command.overrides([word for word in words if word != "--help"]))


def check_verb(verb="info", *words):
    assert verb in VERBS, f"streamingvlm has no verb {verb}"
    compose_words(VERBS[verb], words)


def check_python(first, *words):
    if first == "-m":
        check_module(*words)
    elif first.startswith("dev/"):
        compose_words(import_module(Path(first).stem).COMMAND, words)
    else:
        assert (ROOT / first).is_file(), first


def check_module(module, *words):
    assert module in ("streamingvlm", "pytest"), module
    if module == "streamingvlm":
        check_verb(*words)
    else:
        assert [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] == []


def check_launcher(*words):
    check_module(*words[words.index("-m") + 1 :])


def check_make(*words):
    # `make test` passes its own settings on to every make that is started below it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    planned = subprocess.run(["make", "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    tests = [path for word in words if word.startswith("TESTS=") for path in word.removeprefix("TESTS=").split()]
    assert [path for path in tests if path.startswith("tests/") and not (ROOT / path).exists()] == []


def check_pip(install, *requirements):
    assert install == "install"
    for requirement in requirements:
        match = re.fullmatch(r"(?:\.|streamingvlm)(?:\[(.+)\])?", requirement)
        assert match, requirement
        assert set((match[1] or "").split(",")) - {""} <= set(PROJECT["optional-dependencies"])


CHECKS = {
    "streamingvlm": check_verb,
    "python": check_python,
    "make": check_make,
    "pip": check_pip,
    "export": lambda assignment: None,
    "ffmpeg": lambda *words: None,  # the sender of a pipe; tests/video/live runs it
    **dict.fromkeys(LAUNCHERS, check_launcher),
}


def check_command(words):
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    assert words[0] in CHECKS, f"{' '.join(words)} is not checked; mark its block with the reason"
    CHECKS[words[0]](*words[1:])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with two short videos."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("match.mp4", "camera.mp4")):
        seconds = islice(Match(number).seconds(), 3)
        pictures = [picture.permute(1, 2, 0).numpy() for second in seconds for picture in render(second)]
        write_video(folder / name, pictures, fps=2)
    return folder


def test_the_pages_have_blocks_of_each_kind():
    languages = [block.language for page in PAGES for block in blocks(page) if not block.reason]
    assert languages.count("python") >= 8
    assert languages.count("bash") >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_is_run_or_marked(page):
    unknown = [block.text for block in blocks(page) if block.language not in ("python", "bash") and not block.reason]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_known_to_their_last_option(page):
    for block in blocks(page):
        if block.language == "bash" and not block.reason:
            for words in commands(block.text):
                check_command(words)
    for text in inline_commands(page):
        for words in commands(text):
            check_command(words)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.language == "python" and not b.reason for b in blocks(page))],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_in_order(page, videos, monkeypatch):
    monkeypatch.chdir(videos)
    frames = render(next(Match(3).seconds()))
    names = {"frames": frames, "frame": frames[0]}
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("streamingvlm strem match.mp4", "no verb"),
        ("streamingvlm stream cahce=full", "cahce"),
        ("rm -r x", "not checked"),
        ("make tets", "tets"),
        ('pip install "streamingvlm[gpus]"', "gpus"),
        ("torchrun --nproc_per_node 2 -m streamingvlm train fit.steps=3", "fit.steps"),
    ],
)
def test_a_wrong_command_fails(line, message):
    (words,) = commands(line)
    with pytest.raises(Exception, match=message):
        check_command(words)
