"""The meaning of each option: the comment beside it, or above it, in the files of ``configs/``.

These comments are the only description of the options of a command: ``--help`` and docs/options.md are made from them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from streamingvlm.cli.configurations import CONFIGS, GROUPS, choices

GROUP_MEANINGS = {
    "architecture": "a model with random weights, for speed alone",
    "benchmark": "the benchmark, with options of its own",
    "cache": "what the cache keeps, and at which positions",
    "candidate": "the side that is evaluated",
    "debug": "a run of seconds, to see that all works",
    "experiment": "the settings of a whole run",
    "judge": "the language model that compares two sides",
    "live": "sources that do not wait: connections, and what to do when late",
    "logger": "where the metrics of a run go",
    "lora": "train adapters instead of all weights",
    "model": "a choice, a folder, or a name on the Hugging Face Hub",
    "output": "the files that are written",
    "rival": "the side that it is compared with",
    "sampling": "how the tokens of a reply are chosen",
    "selection": "how recordings are cut into chunks",
    "serving": "one process, or replicas under Ray",
    "video": "frames: their rate, size and decoder",
    "workload": "the footage and the length of replies",
}


@dataclass(frozen=True)
class Option:
    """An option of a file: its dotted name, its default as written, and what it means ("" if nothing says so)."""

    name: str
    default: str
    meaning: str


@cache
def options_of(file: Path) -> tuple[Option, ...]:
    """Return the options of a configuration file, in their order."""
    text = file.read_text("utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return tuple(_options(node, text.splitlines(), ""))


def _options(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Option]:
    for key, value in node.value:
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        name = f"{prefix}{key.value}"
        meaning = _comment_beside(key, value, lines) or _comment_above(key, lines)
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield Option(name, "", meaning)
            yield from _options(value, lines, f"{name}.")
        else:
            written = lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
            yield Option(name, written, meaning)


def _comment_beside(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    same_line = value.end_mark.line == key.end_mark.line
    rest = lines[key.end_mark.line][value.end_mark.column if same_line else key.end_mark.column + 1 :]
    return rest.partition("#")[2].strip()


def _comment_above(key: yaml.Node, lines: list[str]) -> str:
    comments = []
    for line in reversed(lines[: key.start_mark.line]):
        if not line.strip().startswith("#"):
            return " ".join(comments)
        comments.insert(0, line.strip().lstrip("# "))
    return ""  # the header of the file


def describe_choice(group: str, choice: str) -> str:
    """Return the description of a choice: the comment in its file after the command that runs it."""
    lines = (CONFIGS / group / f"{choice}.yaml").read_text("utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("# @package")]
    described = []
    for line in lines[1:]:
        if not line.startswith("# "):
            break
        described.append(line[2:].strip())
    return " ".join(described)


def own_options(config_name: str, chosen: dict[str, str]) -> list[Option]:
    """Return the options of a command's own file, and those that a choice such as ``benchmark=pitch`` adds."""
    own = list(options_of(CONFIGS / f"{config_name}.yaml"))
    known = {option.name.partition(".")[0] for option in own} | GROUPS
    for group, choice in (groups_of(config_name) | chosen).items():
        file = CONFIGS / group / f"{choice}.yaml"
        if file.is_file() and is_global(file):
            own += [option for option in options_of(file) if option.name.partition(".")[0] not in known]
    return own


def leaves(options: Sequence[Option]) -> list[Option]:
    """Return the options that are not sections of others."""
    return [one for one in options if not any(other.name.startswith(f"{one.name}.") for other in options)]


def is_global(file: Path) -> bool:
    """Return True if the options of a choice are not below the name of its group."""
    return file.read_text("utf-8").startswith("# @package _global_")


def groups_of(config_name: str) -> dict[str, str | None]:
    """Return the groups of a command with the choice that each has by default."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{config_name}.yaml")).get("defaults", [])
    entries = [next(iter(entry.items())) for entry in defaults if isinstance(entry, dict)]
    named = ((name.removeprefix("optional ").lstrip("/"), choice) for name, choice in entries)
    return {name: choice for name, choice in named if not name.startswith("override")}


def group_options(group: str) -> list[Option]:
    """Return the options that any choice of a group has, each once."""
    found: dict[str, Option] = {}
    for choice in sorted(choices(group), key=lambda name: name not in ("default", "pyav", "streaming", "pitch")):
        file = CONFIGS / group / f"{choice}.yaml"
        if not is_global(file):
            for option in leaves(options_of(file)):
                if not option.default.startswith("${"):
                    found.setdefault(option.name, option)
    return list(found.values())
