"""Every file under configs/ opens with the command that runs it, and that command composes."""

import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from streamingvlm.cli.configurations import compose_config
from streamingvlm.cli.explanations import explain
from streamingvlm.cli.verbs import VERBS
from streamingvlm.config import (
    RENAMED_SETTINGS,
    CacheConfig,
    LiveConfig,
    SamplingConfig,
    VideoConfig,
    explain_renamed,
    resolve,
)
from streamingvlm.endpoint import EndpointConfig
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.endpoint_candidate import EndpointView

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
COMMAND = re.compile(r"# .*?\b(?:streamingvlm (?P<verb>\w+)|python dev/(?P<script>\w+)\.py)(?P<words>.*)")


def command_of(match):
    return VERBS[match["verb"]] if match["verb"] else import_module(match["script"]).COMMAND


def compose_command(verb, words):
    command = VERBS[verb] if isinstance(verb, str) else verb
    return compose_config(command.config_name, command.overrides(words))


def first_comment(file):
    """The first line, after the package header that Hydra wants before all else."""
    lines = file.read_text().splitlines()
    return next(line for line in lines if not line.startswith("# @package"))


def name_of(file):
    return str(file.relative_to(CONFIGS))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_opens_with_the_command_that_runs_it(file):
    match = COMMAND.match(first_comment(file))
    assert match, f"{name_of(file)} opens with {first_comment(file)!r}"
    group, choice = file.parent.name, file.stem
    if file.parent == CONFIGS:
        assert command_of(match).config_name == choice
    else:
        assert f"{group}={choice}" in shlex.split(match["words"])


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_command_composes_with_every_value_known(file):
    match = COMMAND.match(first_comment(file))
    config = compose_command(command_of(match), shlex.split(match["words"]))
    assert OmegaConf.missing_keys(config) == set()
    OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize(
    "words",
    [[f"cache={file.stem}"] for file in sorted((CONFIGS / "cache").glob("*.yaml"))]
    + [
        ["video=decord"],
        ["sampling=greedy"],
        ["model=streamingvlm"],
        ["debug=short"],
    ],
    ids=" ".join,
)
def test_the_options_of_a_stream_are_those_of_the_library(words):
    config = OmegaConf.to_container(compose_command("stream", words))
    for kind in (CacheConfig, VideoConfig, LiveConfig, SamplingConfig):
        given = config[kind.__name__.removesuffix("Config").lower()]
        assert set(given) == {field.name for field in fields(kind)}
        resolve(kind, given, {})


@pytest.mark.parametrize("group", ["candidate", "rival"])
def test_the_options_of_a_candidate_are_those_of_the_library(group):
    view, endpoint = ({field.name for field in fields(kind)} for kind in (EndpointView, EndpointConfig))
    remote = compose_command("evaluate", ["benchmark=livesports", f"{group}=endpoint"])[group]
    assert (set(remote), set(remote.endpoint)) == (view | {"kind", "name", "endpoint"}, endpoint)
    for choice in ("session", "last_frames"):
        chosen = compose_command("evaluate", ["benchmark=livesports", f"{group}={choice}"])[group]
        for kind in (CacheConfig, VideoConfig, SamplingConfig):
            name = kind.__name__.removesuffix("Config").lower()
            if name in chosen:
                assert set(chosen[name]) == {field.name for field in fields(kind)}


def test_a_rival_has_the_settings_of_the_command_but_for_its_own():
    words = [
        "benchmark=inf_streams",
        "cache=window",
        "cache.vision_window_s=8",
        "rival=session",
        "rival.cache.policy=full",
    ]
    options = OmegaConf.to_container(compose_command("evaluate", words), resolve=True)
    assert [options[role]["cache"]["policy"] for role in ("candidate", "rival")] == ["window", "full"]
    assert [options[role]["cache"]["vision_window_s"] for role in ("candidate", "rival")] == [8, 8]


def test_the_judges_options_are_those_of_the_endpoint():
    judge = compose_command("evaluate", ["benchmark=inf_streams"]).judge
    assert set(judge.endpoint) == {field.name for field in fields(EndpointConfig)}


def test_null_leaves_a_choice_to_the_checkpoint():
    config = OmegaConf.to_container(compose_command("stream", []))
    assert resolve(CacheConfig, config["cache"], {"vision_window_s": 4.0}).vision_window_s == 4.0
    assert resolve(CacheConfig, config["cache"], {}) == CacheConfig()


def test_the_released_checkpoint_is_watched_as_it_was_trained_under_either_of_its_names():
    by_choice, by_name = (
        compose_command("stream", [f"model={n}"]) for n in ("streamingvlm", "mit-han-lab/StreamingVLM")
    )
    assert by_choice == by_name
    assert by_name.model.name == "mit-han-lab/StreamingVLM"
    assert by_name.video.resize == "qwen_vl_utils"


SECTIONS = {"cache": CacheConfig, "video": VideoConfig, "live": LiveConfig, "sampling": SamplingConfig}


@pytest.mark.parametrize(
    ("section", "old_name", "new_name"),
    [
        (section, *names)
        for section, renamed in RENAMED_SETTINGS.items()
        if section in SECTIONS
        for names in renamed.items()
    ],
)
def test_an_old_name_of_a_setting_is_refused_with_the_new_one(section, old_name, new_name):
    kind = SECTIONS[section]
    assert new_name in {field.name for field in fields(kind)}
    with pytest.raises(ConfigError) as error:
        resolve(kind, {old_name: 1.0, "another": 2}, {})
    assert str(error.value) == f"{section}.{old_name} was renamed to {section}.{new_name}; use the new name"


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"video\.speed is unknown; video has decoder, fps, max_pixels"):
        resolve(VideoConfig, {"speed": 2}, {})


@pytest.mark.parametrize(
    ("verb", "word", "message"),
    [
        ("stream", "video.chunk_s=2", "video.chunk_s was renamed to video.turn_s; use the new name"),
        ("stream", "cache.reread_text=true", "cache.reread_text was renamed to cache.recompute_text; use the new name"),
        ("prepare", "chunk_s=2", "chunk_s was renamed to turn_s; use the new name"),
    ],
)
def test_the_command_line_refuses_an_old_name_with_the_new_one(verb, word, message):
    with pytest.raises(HydraException) as error:
        compose_command(verb, [word])
    assert explain(error.value, VERBS[verb], [word]) == message


def test_a_name_that_was_not_renamed_has_no_explanation():
    assert explain_renamed("video.turn_s") is None
    assert explain_renamed("live.chunk_s") is None
    assert explain_renamed("chunk_s", script="stream") is None
    assert explain_renamed("candidate.video.chunk_s").startswith(
        "candidate.video.chunk_s was renamed to candidate.video."
    )
