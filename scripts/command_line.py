"""The command line of the scripts: plain paths, free text, and errors in one line.

Spaces, commas, ``=``, quotes and braces have a meaning in Hydra's grammar but also occur in paths and questions. Values
of text options are therefore quoted before Hydra parses them, and a word that is not ``name=value`` is the script's
plain argument.
"""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from streamingvlm.config import RENAMED_SETTINGS, explain_renamed
from streamingvlm.errors import ConfigError, StreamingVLMError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_FLAGS = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--info", "-i"}
_FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
}
_OVERRIDE = re.compile(r"(?P<mark>[+~]{0,2})(?P<key>[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


@dataclass(frozen=True)
class CommandLine:
    """Rules to translate the words of a script's command line into Hydra overrides.

    config_name: the script's configuration in ``configs/``.
    plain: the option that a plain word, one that is not ``name=value``, sets.
    text: options with free text as their value.
    checkpoints: the group whose choices are checkpoints; any other value is a folder or a name on the hub.
    takes_several: several plain words make a list.
    """

    config_name: str
    plain: str
    text: tuple[str, ...] = ()
    checkpoints: str = "model"
    takes_several: bool = False

    def overrides(self, words: Sequence[str]) -> list[str]:
        """Return the words as Hydra overrides. Raises ConfigError for a second plain word or an unknown flag."""
        kept, plain = [], []
        words = iter(words)
        for word in words:
            if word == "--":
                plain.extend(words)
            elif word == "-" or _ADDRESS.fullmatch(word):
                plain.append(word)
            elif word.startswith("-"):
                kept.append(_flag(word))
                kept.extend([next(words, "")] if word in _FLAGS_WITH_VALUE else [])
            elif self._is_override(word):
                kept.append(self._override(word))
            else:
                plain.append(word)
        if len(plain) > 1 and self.takes_several:
            return [*kept, f"{self.plain}=[{','.join(map(quote, plain))}]"]
        if len(plain) > 1:
            from streamingvlm.video.address import redacted  # only errors need it, and its import takes a second

            first, second = (redacted(word) for word in plain[:2])
            raise ConfigError(
                f"{second} is a second {self.plain} after {first}; give one, in quotes if it contains spaces"
            )
        return kept + [f"{self.plain}={quote(word)}" for word in plain]

    def _is_override(self, word: str) -> bool:
        """Return True for ``name=value``, unless a file has that name and no option does, and for ``~name``."""
        if not (match := _OVERRIDE.fullmatch(word)):
            return word.startswith("~") and not Path(os.path.expanduser(word)).exists()
        return re.split(r"[./@:]", match["key"])[0] in self._names() or not Path(word).exists()

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
        files = sorted((CONFIGS / self.checkpoints).glob("*.yaml"))
        for file in files:
            if value == file.stem or value == OmegaConf.select(OmegaConf.load(file), f"{self.checkpoints}.name"):
                return f"{self.checkpoints}={file.stem}"
        return f"{self.checkpoints}.name={quote(value)}"

    def _names(self) -> set[str]:
        options = OmegaConf.load(CONFIGS / f"{self.config_name}.yaml")
        return {*options, *(folder.name for folder in CONFIGS.iterdir() if folder.is_dir()), "hydra"}


def run(task: Callable[[dict[str, Any]], None], line: CommandLine):
    """Run ``task`` with the options of ``sys.argv``. User errors print one line, bugs their traceback."""

    # Errors of the task are caught inside the job, because Hydra would print a line before them.
    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=line.config_name)
    def job(config: DictConfig):
        with _one_line_errors(line):
            task(OmegaConf.to_container(config, resolve=True))

    # With this variable Hydra raises its errors instead of printing several lines and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with _one_line_errors(line):
        sys.argv[1:] = line.overrides(sys.argv[1:])
        job()


@contextmanager
def _one_line_errors(line: CommandLine) -> Iterator[None]:
    try:
        yield
    except StreamingVLMError as error:
        _exit(str(error), EXIT_BAD_INPUT)
    except HydraException as error:
        _exit(explain(error, line.config_name, sys.argv[1:]), EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _exit("stopped", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the pipe has closed it (`| head`). Redirect stdout, as Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _exit(
            f"{error.filename or 'a file'} cannot be written ({error.strerror}); free some space and run it again",
            EXIT_BAD_INPUT,
        )


def explain(error: HydraException, config_name: str, words: Sequence[str]) -> str:
    """Return one line for an error of Hydra, with the option, its new name or its possible values."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        new_choice = RENAMED_SETTINGS.get(f"{group}=", {}).get(choice)
        hint = (new_choice and f"it was renamed to {group}={new_choice}") or (
            f"choose one of {', '.join(sorted(error.options))}"
        )
        return f"{group}={choice} is unknown; {hint}"
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be parsed: {_first_line(error)}; quote values with special characters"
    if match := re.search(r"Could not (?:override|delete from config\.) ?'([^']+)'", str(error)):
        word = next((word for word in words if word.lstrip("+~").startswith(match[1])), match[1])
        return explain_renamed(match[1], script=config_name) or _unknown_option(match[1], word, _options(config_name))
    return ": ".join(_first_line(cause) for cause in (error, error.__cause__) if cause)


def quote(text: str) -> str:
    """Quote free text as a value of Hydra's grammar; ``null`` and text in quotes are returned unchanged."""
    if text == "null" or _QUOTED.fullmatch(text):
        return text
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + (r"\'" if match[2] else ""), text)
    return f"'{text}'"


def _flag(word: str) -> str:
    if word.partition("=")[0] in _FLAGS | _FLAGS_WITH_VALUE:
        return word
    name = word.lstrip("-") or "name"
    raise ConfigError(f"{word} is unknown; options are written {name.partition('=')[0]}=VALUE, and --help lists them")


def _options(config_name: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config_name)


def _unknown_option(key: str, word: str, options: DictConfig) -> str:
    parent, _, name = key.rpartition(".")
    siblings = OmegaConf.select(options, parent) if parent else options
    if not isinstance(siblings, DictConfig):
        return f"{key} is unknown; {parent} is a value and has no options"
    names = [str(sibling) for sibling in siblings]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {key.removesuffix(name)}{close[0]}?)" if close else ""
    if parent:
        return f"{key} is unknown{hint}; {parent} has {', '.join(names)}"
    return f"{word} is neither an option{hint} nor a file; the options are {', '.join(names)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _exit(message: str, code: int):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(code)
