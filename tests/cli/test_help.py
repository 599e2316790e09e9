"""--help of every verb, the page of all options, and what they are made from."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from write_options import PAGE

import streamingvlm
from streamingvlm.cli.configurations import choices, compose_config, option_names
from streamingvlm.cli.help_page import help_page
from streamingvlm.cli.main import main
from streamingvlm.cli.meanings import (
    GROUP_MEANINGS,
    describe_choice,
    group_options,
    groups_of,
    leaves,
    options_of,
    own_options,
)
from streamingvlm.cli.options_page import options_page
from streamingvlm.cli.verbs import VERBS
from streamingvlm.data.manifest import MANIFEST, VERSION
from streamingvlm.errors import ConfigError

ALL_GROUPS = sorted({group for command in VERBS.values() for group in groups_of(command.config_name)})
BENCHMARKS = [f"benchmark={name}" for name in choices("benchmark")]


@pytest.mark.parametrize(
    "verb, words", [(verb, []) for verb in VERBS] + [("evaluate", [word]) for word in BENCHMARKS], ids=str
)
def test_help_is_a_screen_that_opens_with_two_examples(verb, words, run_command):
    code, page, error = run_command(verb, "--help", *words)
    lines = page.splitlines()
    assert (code, error) == (0, "")
    assert len(lines) <= 60
    assert [line.startswith(f"streamingvlm {verb}") for line in lines[:3]] == [True, True, False]
    assert "hydra" not in page.lower()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_a_meaning(verb):
    benchmarks = [{"benchmark": name} for name in choices("benchmark")] if verb == "evaluate" else [{}]
    for chosen in benchmarks:
        own = leaves(own_options(VERBS[verb].config_name, chosen))
        assert [option.name for option in own if not option.meaning] == []


@pytest.mark.parametrize("group", sorted({*ALL_GROUPS, "candidate", "rival", "judge"}))
def test_every_option_of_a_group_has_a_meaning(group):
    assert GROUP_MEANINGS[group]
    assert [option.name for option in group_options(group) if not option.meaning] == []
    assert [choice for choice in choices(group) if group != "video" and not describe_choice(group, choice)] in (
        [],
        ["default"],
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_every_option_that_the_verb_has(verb):
    command = VERBS[verb]
    composed = compose_config(command.config_name)
    shared = set(groups_of(command.config_name)) | {"architecture"}
    expected = {name for name, _ in option_names(composed) if name.partition(".")[0] not in shared}
    listed = {option.name for option in leaves(own_options(command.config_name, {}))}
    assert {name for name in expected if not any(name.startswith(f"{one}.") for one in listed)} <= listed


def test_help_of_a_group_lists_its_options():
    page = help_page(VERBS["stream"], ["cache"])
    assert "cache=full | recompute" in page
    assert re.search(r"cache.vision_window_s= +seconds of vision kept", page)
    assert "fit.learning_rate=" in help_page(VERBS["train"], ["fit"])
    with pytest.raises(ConfigError, match="speed is no group of options; streamingvlm stream has cache, debug"):
        help_page(VERBS["stream"], ["speed"])


def test_a_meaning_is_the_comment_beside_or_above_its_option(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        '# command\n# of this file\na: 1 # beside\n\n# above\n# it\nb:\n  c: [1, 2] # inside\n  d: {e: "#"} # last\n'
    )
    assert [(option.name, option.default, option.meaning) for option in options_of(file)] == [
        ("a", "1", "beside"),
        ("b", "", "above it"),
        ("b.c", "[1, 2]", "inside"),
        ("b.d", '{e: "#"}', "last"),
    ]


def test_the_committed_page_of_options_is_current():
    assert PAGE.read_text("utf-8") == options_page(VERBS), "run: python dev/write_options.py"


def run_main(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["streamingvlm", *words])
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def test_the_command_alone_lists_its_verbs_and_version_is_that_of_the_package(monkeypatch, capsys):
    code, page, _ = run_main(monkeypatch, capsys)
    assert code == 0
    assert [verb for verb in VERBS if not re.search(rf"^  {verb} ", page, re.MULTILINE)] == []
    assert run_main(monkeypatch, capsys, "--version")[1] == f"streamingvlm {streamingvlm.__version__}\n"


@pytest.mark.parametrize(
    "word, message",
    [
        ("strem", "strem is no verb (did you mean stream?); choose one of stream, serve"),
        ("match.mp4", "no verb is given; to watch a video, run: streamingvlm stream match.mp4"),
    ],
)
def test_a_wrong_verb_is_answered_with_the_right_one(word, message, monkeypatch, capsys, folder):
    (folder / "match.mp4").touch()
    code, _, error = run_main(monkeypatch, capsys, word)
    assert code == 2 and message in error and error.count("\n") == 1


WRONG = {
    "a wrong path": ["stream", "nowhere.mp4"],
    "a file that looks like an option": ["stream", "-dash.mp4"],
    "an empty source": ["stream", ""],
    "a start that is no number": ["stream", "start_s=soon"],
    "no duration": ["stream", "duration_s=0"],
    "a duration that is no number": ["stream", "duration_s=long"],
    "a number that is none, in a group": ["stream", "live.stall_timeout_s=wide"],
    "a switch that is neither true nor false": ["stream", "output.overwrite=perhaps"],
    "a port that is no number": ["serve", "port=http"],
    "an unknown option": ["stream", "cache.vision_windw_s=8"],
    "training without data": ["train"],
    "a batch of no examples": ["train", "data=small", "fit.batch_size=0"],
    "a held-out stream without held-out chunks": ["train", "data=small", "held_out_stream.every_steps=5"],
    "data that is all held out": ["train", "data=held_out"],
    "a folder that is in use": ["train", "data=small", "folder=small"],
    "a wrong model": ["serve", "model=no/such/folder"],
    "a wrong benchmark file": ["evaluate", "benchmark=ovo_bench", "questions=none.json"],
}
WITHOUT_TORCH = """
import sys
from streamingvlm.cli.main import main
sys.argv[0] = "streamingvlm"
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_before_torch_is_imported(words, folder):
    (folder / "-dash.mp4").touch()
    for name, split in (("small", "chunks_train"), ("held_out", "chunks_held_out")):
        (folder / name).mkdir()
        (folder / name / MANIFEST).write_text(json.dumps({"version": VERSION, "counts": {split: 3}}))
    environment = {"PYTHONPATH": str(Path(streamingvlm.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "False\n"), result.stderr
    assert result.stderr.startswith(f"streamingvlm {words[0]}: ") and result.stderr.count("\n") == 1
