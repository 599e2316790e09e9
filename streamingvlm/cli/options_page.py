"""docs/options.md: every option of every verb, from the same comments as ``--help``."""

from collections.abc import Iterable, Iterator, Mapping

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.configurations import choices
from streamingvlm.cli.meanings import (
    GROUP_MEANINGS,
    Option,
    describe_choice,
    group_options,
    groups_of,
    leaves,
    own_options,
)

_HEAD = """# Options

Every option of every verb, written `NAME=VALUE` after the verb; the verb's `--help` shows the same in a terminal. The
last part of a name is enough where no other option ends in it: `fps=4` is taken as `video.fps=4`, and a line says so.
An empty default (null) leaves the choice to the checkpoint or to the program, as the meaning says. A list is written
`[a,b]`.

This page is made by `python dev/write_options.py` from the comments in `configs/`; change those.
"""


def options_page(verbs: Mapping[str, Command]) -> str:
    """Return the page as Markdown."""
    sections = [_HEAD, *(_verb_section(name, command) for name, command in verbs.items()), "## Groups\n"]
    groups = dict.fromkeys(group for command in verbs.values() for group in groups_of(command.config_name))
    of_benchmarks = ("candidate", "rival", "judge")
    sections += [_group_section(group) for group in sorted({*groups, *of_benchmarks} - {"benchmark"})]
    return "\n".join(sections)


def _verb_section(name: str, command: Command) -> str:
    examples = [f"{command.program} {example}".rstrip() for example in command.examples]
    lines = [f"## {name}\n", command.summary, "", "```bash", *examples, "```", ""]
    if name == "evaluate":
        lines += _table(own_options(command.config_name, {"benchmark": None}))
        for benchmark in choices("benchmark"):
            own = own_options(command.config_name, {"benchmark": benchmark})
            added = [one for one in own if one not in own_options(command.config_name, {"benchmark": None})]
            lines += [f"### benchmark={benchmark}\n", describe_choice("benchmark", benchmark), "", *_table(added)]
    else:
        lines += _table(own_options(command.config_name, {}))
    if groups := [group for group in groups_of(command.config_name) if group != "benchmark"]:
        lines += [f"Groups: {', '.join(f'[{group}](#{group})' for group in groups)}.", ""]
    return "\n".join(lines)


def _group_section(group: str) -> str:
    lines = [f"### {group}\n", f"{GROUP_MEANINGS[group].capitalize()}.", "", "| choice | what it is |", "|---|---|"]
    lines += [f"| `{group}={choice}` | {_cell(describe_choice(group, choice))} |" for choice in choices(group)]
    options = [Option(f"{group}.{one.name}", one.default, one.meaning) for one in group_options(group)]
    return "\n".join([*lines, "", *(_table(options) if options else [])])


def _table(options: Iterable[Option]) -> Iterator[str]:
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for option in leaves(list(options)):
        default = f"`{option.default}`" if option.default not in ("null", "") else ""
        yield f"| `{option.name}` | {_cell(default)} | {_cell(option.meaning)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
