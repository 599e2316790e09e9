"""``--help`` of the command and of its verbs, each within a screen."""

from collections.abc import Iterable, Mapping, Sequence

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.configurations import GROUPS, choices
from streamingvlm.cli.meanings import GROUP_MEANINGS, Option, group_options, groups_of, leaves, own_options
from streamingvlm.errors import ConfigError

_MAX_LINES = 60
_NAME_WIDTH = 34


def verbs_page(verbs: Mapping[str, Command]) -> str:
    """Return the help of the command itself."""
    lines = [
        "streamingvlm stream match.mp4",
        "streamingvlm info",
        "",
        *(f"  {name:<10}{command.summary}" for name, command in verbs.items()),
        "",
        "`streamingvlm VERB --help` lists the options of a verb; --version prints the version.",
    ]
    return "\n".join(lines)


def help_page(command: Command, words: Sequence[str]) -> str:
    """Return the help of a command, or of the groups and sections that plain words name. Raises ConfigError."""
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    own = own_options(command.config_name, chosen)
    if names:
        return "\n".join(line for name in names for line in _part(name, own, command))
    examples = [f"{command.program} {example}".rstrip() for example in command.examples]
    head = [*examples, "", command.summary, ""] if examples else []
    head += ["Options, given as NAME=VALUE (a plain word is the " + command.plain.rpartition(".")[2] + "):"]
    tail = _group_lines(command)
    collapsed: set[str] = set()
    while len(lines := [*head, *_option_lines(own, collapsed, command), *tail]) > _MAX_LINES:
        collapsed.add(_largest_section(own, collapsed))
    return "\n".join(lines)


def _part(name: str, own: Sequence[Option], command: Command) -> list[str]:
    if inside := [option for option in own if option.name.startswith(f"{name}.")]:
        return [f"Options of {name}:", *map(_line, leaves(inside))]
    if name not in GROUPS:
        sections = {option.name.partition(".")[0] for option in own if "." in option.name}
        known = ", ".join(sorted(sections | set(groups_of(command.config_name))))
        raise ConfigError(f"{name} is no group of options; {command.program} has {known or 'none'}")
    lines = [f"{name}={' | '.join(choices(name))}: {GROUP_MEANINGS[name]}"]
    return lines + [_line(Option(f"{name}.{one.name}", one.default, one.meaning)) for one in group_options(name)]


def _option_lines(own: Sequence[Option], collapsed: set[str], command: Command) -> Iterable[str]:
    own_leaves = leaves(own)
    for section in dict.fromkeys(option.name.rpartition(".")[0].partition(".")[0] for option in own_leaves):
        inside = [option for option in own_leaves if option.name.rpartition(".")[0].partition(".")[0] == section]
        if section in collapsed:
            meaning = next(option.meaning for option in own if option.name == section)
            more = f"{len(inside)} options, see {command.program} --help {section}"
            yield f"  {f'{section}.NAME=VALUE':<{_NAME_WIDTH}}{f'{meaning}; ' if meaning else ''}{more}"
        else:
            yield from map(_line, inside)


def _group_lines(command: Command) -> list[str]:
    groups = groups_of(command.config_name)
    if not groups:
        return []
    lines = ["", f"Groups of options ({command.program} --help GROUP lists them):"]
    for group, choice in groups.items():
        others = " | ".join(one for one in choices(group) if one != choice)
        shown = f"{group}={choice or ''}"
        lines.append(f"  {shown:<{_NAME_WIDTH}}{GROUP_MEANINGS[group]}{f' ({others})' if others else ''}")
    return lines


def _largest_section(own: Sequence[Option], collapsed: set[str]) -> str:
    sections = [option.name.partition(".")[0] for option in own if "." in option.name]
    return max((one for one in sections if one not in collapsed), key=sections.count)


def _line(option: Option) -> str:
    default = "" if option.default == "null" else option.default
    return f"  {f'{option.name}={default}':<{_NAME_WIDTH}} {option.meaning}".rstrip()
