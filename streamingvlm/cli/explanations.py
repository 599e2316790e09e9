"""One line for an error of Hydra: the option, its new name, its possible values, or the nearest right name."""

import difflib
import re
from collections.abc import Iterable, Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.configurations import compose_config, option_names
from streamingvlm.config import RENAMED_SETTINGS, explain_renamed


def explain(error: HydraException, command: Command, words: Sequence[str]) -> str:
    """Return one line for an error of Hydra."""
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be parsed: {_first_line(error)}; quote values with special characters"
    if match := re.search(r"Ambiguous value for argument '([^']*)'", str(error)):
        return _sweep(match[1], command)
    if match := re.search(r"Could not (?:override|delete from config\.) ?'([^']+)'", str(error)):
        word = next((word for word in words if word.lstrip("+~").startswith(match[1])), match[1])
        renamed = explain_renamed(match[1], script=command.config_name)
        return renamed or _unknown_option(match[1], word, command, words)
    return ": ".join(_first_line(cause) for cause in (error, error.__cause__) if cause)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is closest to a mistyped one, by its whole or by its last part; None if none is close."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
        return close[0]
    by_leaf = {other.rpartition(".")[2]: other for other in reversed(names)}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)
    return by_leaf[close[0]] if close else None


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    new_choice = RENAMED_SETTINGS.get(f"{group}=", {}).get(choice)
    hint = (new_choice and f"it was renamed to {group}={new_choice}") or (
        f"choose one of {', '.join(sorted(error.options))}"
    )
    return f"{group}={choice} is unknown; {hint}"


def _sweep(word: str, command: Command) -> str:
    name, _, values = word.partition("=")
    loop = f"for value in {values.replace(',', ' ')}; do {command.program} {name}=$value; done"
    return f"{word} is a list of values to try, but a run takes one; repeat it ({loop}), or write a list as [{values}]"


def _unknown_option(key: str, word: str, command: Command, words: Sequence[str]) -> str:
    chosen = [override for override in words if override != word and "=" in override]
    try:
        options = compose_config(command.config_name, chosen)
    except HydraException:  # another word is wrong as well
        options = compose_config(command.config_name)
    parent, known = key.rpartition(".")[0], dict(option_names(options))
    if parent in known:
        return f"{key} is unknown; {parent} is a value and has no options"
    siblings = OmegaConf.select(options, parent) if parent else options
    names = [str(sibling) for sibling in siblings] if isinstance(siblings, DictConfig) else []
    close = nearest(key, [*(f"{parent}.{one}" if parent else one for one in names), *known])
    hint = f" (did you mean {close}?)" if close else ""
    if parent and names:
        return f"{key} is unknown{hint}; {parent} has {', '.join(names)}"
    shown = ", ".join(str(one) for one in options)
    return f"{word} is neither an option{hint} nor a file; the options are {shown}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
