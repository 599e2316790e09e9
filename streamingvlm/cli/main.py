"""``streamingvlm VERB ...``: picks the verb, runs it, and prints an error of the user as one line."""

import atexit
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf

import streamingvlm
from streamingvlm.cli.command_line import Command
from streamingvlm.cli.configurations import check_types, compose_config
from streamingvlm.cli.explanations import explain, nearest
from streamingvlm.cli.help_page import help_page, verbs_page
from streamingvlm.cli.verbs import VERBS
from streamingvlm.errors import StreamingVLMError

EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_HELP = ("--help", "-h", "help")


def main():
    """Run the verb that ``sys.argv`` names."""
    verb, *words = sys.argv[1:] or ["--help"]
    if verb == "--version":
        print(f"streamingvlm {streamingvlm.__version__}")
    elif verb in _HELP:
        print(verbs_page(VERBS))
    elif verb in VERBS:
        with _quick_exit_after_interrupt():
            run(VERBS[verb], words)
    else:
        _exit("streamingvlm", _unknown_verb(verb), EXIT_BAD_INPUT)


def run_verb(verb: str):
    """Run a verb with the words of ``sys.argv``."""
    with _quick_exit_after_interrupt():
        run(VERBS[verb], sys.argv[1:])


def run(command: Command, words: Sequence[str]):
    """Run a command. User errors print one line, bugs their traceback."""
    with _one_line_errors(command, words):
        if any(word in _HELP[:2] for word in words):
            print(help_page(command, [word for word in words if word not in _HELP]))
            return
        config = compose_config(command.config_name, command.overrides(words))
        options = OmegaConf.to_container(config, resolve=True)
        check_types(options, OmegaConf.to_container(compose_config(command.config_name, command.choices_in(words))))
        if command.check:
            command.check(options)
        _task(command)(options)


@contextmanager
def _quick_exit_after_interrupt() -> Iterator[None]:
    """After Ctrl-C, end the process without the interpreter's teardown, over a second once torch is loaded."""
    try:
        yield
    except SystemExit as error:
        if error.code != EXIT_INTERRUPTED:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)


def _task(command: Command):
    if callable(command.task):
        return command.task
    module, _, function = command.task.partition(":")
    return getattr(import_module(module), function)


def _unknown_verb(verb: str) -> str:
    if Path(verb).exists() or "://" in verb:
        return f"no verb is given; to watch a video, run: streamingvlm stream {verb}"
    close = nearest(verb, VERBS)
    hint = f" (did you mean {close}?)" if close else ""
    return f"{verb} is no verb{hint}; choose one of {', '.join(VERBS)}"


@contextmanager
def _one_line_errors(command: Command, words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except StreamingVLMError as error:
        _exit(command.program, str(error), EXIT_BAD_INPUT)
    except HydraException as error:
        _exit(command.program, explain(error, command, words), EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _exit(command.program, "stopped", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the pipe has closed it (`| head`). Redirect stdout, as Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        name = error.filename or "a file"
        reason = f"{name} cannot be written ({error.strerror}); free some space and run it again"
        _exit(command.program, reason, EXIT_BAD_INPUT)


def _exit(program: str, message: str, code: int) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)
