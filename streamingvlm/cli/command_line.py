"""The words of a command line as overrides of its configuration: plain paths, free text, short names.

Spaces, commas, ``=``, quotes and braces have a meaning in Hydra's grammar but also occur in paths and questions. Values
of text options are therefore quoted before Hydra parses them, a word that is not ``name=value`` is the command's plain
argument, and the last part of an option's name is enough if no other option ends in it.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from streamingvlm.cli.configurations import CONFIGS, GROUPS, choices, compose_config, option_names
from streamingvlm.errors import ConfigError
from streamingvlm.video.address import redacted

_OVERRIDE = re.compile(r"(?P<mark>[+~]{0,2})(?P<key>[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command: its configuration, the meaning of its words, and the function that gets its options.

    program: as a user types it, for messages and examples.
    config_name: the file in ``configs/``.
    plain: the option that a plain word, one that is not ``name=value``, sets.
    task: the function of the options, or "module:function", imported only when the words have been checked.
    check: looks at the options before the task is imported, which takes seconds.
    text: options with free text as their value.
    checkpoints: the group whose choices are checkpoints; any other value is a folder or a name on the hub.
    takes_several: several plain words make a list.
    architectures: whether that option also takes the name of an architecture, for random weights.
    summary, examples: for ``--help``; examples are the words after the program.
    """

    program: str
    config_name: str
    plain: str
    task: Callable[[dict[str, Any]], None] | str
    check: Callable[[dict[str, Any]], None] | None = None
    text: tuple[str, ...] = ()
    checkpoints: str = "model"
    takes_several: bool = False
    architectures: bool = False
    summary: str = ""
    examples: tuple[str, ...] = ()

    def overrides(self, words: Sequence[str]) -> list[str]:
        """Return the words as Hydra overrides. Raises ConfigError for a second plain word or an unknown flag."""
        kept, plain = [], []
        words = list(words)
        for index, word in enumerate(words):
            if word == "--":
                plain.extend(words[index + 1 :])
                break
            if word == "-" or _ADDRESS.fullmatch(word):
                plain.append(word)
            elif word.startswith("-"):
                raise _unknown_flag(word)
            elif self._is_override(word):
                kept.append(word)
            else:
                plain.append(word)
        if len(plain) > 1 and not self.takes_several:
            first, second = (redacted(word) for word in plain[:2])
            raise ConfigError(
                f"{second} is a second {self.plain} after {first}; give one, in quotes if it contains spaces"
            )
        chosen = self.choices_in(kept)
        overrides = [self._override(self._spelled_out(word, chosen)) for word in kept]
        if len(plain) > 1:
            return [*overrides, f"{self.plain}=[{','.join(map(quote, plain))}]"]
        return overrides + [f"{self.plain}={quote(word)}" for word in plain]

    def choices_in(self, words: Sequence[str]) -> list[str]:
        """Return the overrides that choose a file of a group, such as ``benchmark=pitch``."""
        return [self._override(word) for word in words if word.partition("=")[0] in GROUPS]

    def _is_override(self, word: str) -> bool:
        """Return True for ``name=value``, unless a file has that name and no option does, and for ``~name``."""
        if not (match := _OVERRIDE.fullmatch(word)):
            return word.startswith("~") and not Path(os.path.expanduser(word)).exists()
        return _first_part(match["key"]) in self._names or not Path(word).exists()

    def _spelled_out(self, word: str, chosen: Sequence[str]) -> str:
        """Return ``video.fps=4`` for ``fps=4``, and say so; other words unchanged. Raises ConfigError if ambiguous."""
        match = _OVERRIDE.fullmatch(word)
        if not match or match["mark"] or _first_part(match["key"]) in self._names:
            return word
        key, value = match["key"], match["value"]
        names = dict(option_names(compose_config(self.config_name, chosen)))
        if key in names:
            return word
        found = [name for name, is_derived in names.items() if name.endswith(f".{key}") and not is_derived]
        if len(found) > 1:
            raise ConfigError(f"{key} is ambiguous; give {' or '.join(f'{name}={value}' for name in found)}")
        if not found:
            return word
        print(f"{self.program}: {word} is taken as {found[0]}={value}", file=sys.stderr)
        return f"{found[0]}={value}"

    def _override(self, word: str) -> str:
        if not (match := _OVERRIDE.fullmatch(word)):
            return word
        mark, key, value = match["mark"], match["key"], match["value"]
        if key == self.checkpoints and not mark:
            return self._checkpoint(value)
        is_text = key in (*self.text, self.plain, f"{self.checkpoints}.name")
        return f"{mark}{key}={quote(value)}" if is_text else word

    def _checkpoint(self, value: str) -> str:
        """Return the override for a choice of the group, found by its name or checkpoint, else for a checkpoint."""
        if self.architectures and value in choices("architecture"):
            return f"architecture={value}"
        for choice in choices(self.checkpoints):
            file = CONFIGS / self.checkpoints / f"{choice}.yaml"
            if value == choice or value == OmegaConf.select(OmegaConf.load(file), f"{self.checkpoints}.name"):
                return f"{self.checkpoints}={choice}"
        return f"{self.checkpoints}.name={quote(value)}"

    @cached_property
    def _names(self) -> set[str]:
        return {*OmegaConf.load(CONFIGS / f"{self.config_name}.yaml"), *GROUPS}


def quote(text: str) -> str:
    """Quote free text as a value of Hydra's grammar; ``null`` and text in quotes are returned unchanged."""
    if text == "null" or _QUOTED.fullmatch(text):
        return text
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + (r"\'" if match[2] else ""), text)
    return f"'{text}'"


def _first_part(key: str) -> str:
    return re.split(r"[./@:]", key)[0]


def _unknown_flag(word: str) -> ConfigError:
    if Path(word).exists():
        return ConfigError(f"{word} looks like an option; give the file as ./{word}")
    name = (word.lstrip("-") or "name").partition("=")[0]
    return ConfigError(f"{word} is unknown; options are written {name}=VALUE, and --help lists them")
