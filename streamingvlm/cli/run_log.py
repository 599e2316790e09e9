"""Logs the metrics of a run to Weights & Biases: online, offline or not at all.

Nothing here waits for input. Without a key, and if the server cannot be reached, the run is logged to files that
`wandb sync` uploads later, and a warning says so.
"""

import logging
import netrc
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback

from streamingvlm.errors import ConfigError

_LOG = logging.getLogger(__name__)
_LOGGERS, _MODES = ("none", "wandb"), ("online", "offline", "disabled")
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_DEFAULT_SERVER = "https://api.wandb.ai"
# A resumed run keeps its id.
_ID_FILE = "wandb_id.txt"


class WandbLog(TrainerCallback):
    """Sends every log entry to a wandb run, and held-out commentary as tables.

    run: the result of `wandb.init`.
    """

    def __init__(self, run):
        self.run = run

    def on_log(self, args, state, control, logs: Mapping[str, float], **_):
        """Log the metrics of the first process, in wandb's groups."""
        if state.is_world_process_zero:
            self.run.log({_grouped(name): value for name, value in logs.items()}, step=state.global_step)

    def show(self, step: int, commentary):
        """Log a held-out commentary as a table: time, output of the model, reference."""
        import wandb

        rows = [[line.start_s, line.said, line.truth] for line in commentary.lines]
        table = wandb.Table(columns=["start_s", "model", "reference"], data=rows)
        self.run.log({"held_out/commentary": table}, step=step)


@contextmanager
def open_run_log(
    options: Mapping[str, Any], *, folder: str | Path, description: Mapping[str, Any]
) -> Iterator[Sequence[WandbLog]]:
    """Open the logger of the config group ``logger`` and close it after the block, marked as failed on an error.

    folder: of the run; description: its options, logged with it. Yields the callbacks for the trainer, at most one.
    Raises ConfigError for an unknown logger or mode.
    """
    check_logger(options)
    is_first = int(os.environ.get("RANK", 0)) == 0
    if options["name"] == "none" or options["mode"] == "disabled" or not is_first:
        yield []
        return
    import wandb

    run = _start(options, Path(folder), description)
    exit_code = 1
    try:
        yield [WandbLog(run)]
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)
        wandb.teardown()  # otherwise wandb logs the next run of this process to the same folder


def check_logger(options: Mapping[str, Any]):
    """Raise ConfigError for an unknown logger or mode."""
    if options["name"] not in _LOGGERS:
        raise ConfigError(f"logger={options['name']} is unknown; choose one of {', '.join(_LOGGERS)}")
    if options["name"] == "wandb" and options["mode"] not in _MODES:
        raise ConfigError(f"logger.mode={options['mode']} is unknown; choose one of {', '.join(_MODES)}")


def _start(options: Mapping[str, Any], folder: Path, description: Mapping[str, Any]):
    import wandb

    mode = options["mode"]
    if mode == "online" and not _has_key():
        _warn_offline("no wandb key found (run: wandb login)", folder)
        mode = "offline"
    try:
        return _init(options, folder, description, mode)
    except wandb.errors.Error as error:  # no network, an invalid key, a project without write access
        if mode == "offline":
            raise
        _warn_offline(f"wandb cannot be reached ({str(error).splitlines()[0]})", folder)
        wandb.teardown()
        return _init(options, folder, description, "offline")


def _init(options: Mapping[str, Any], folder: Path, description: Mapping[str, Any], mode: str):
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        mode=mode,
        id=_run_id(folder),
        resume="allow" if mode == "online" else None,
        project=options["project"],
        entity=options["entity"],
        name=options["run_name"],
        tags=list(options["tags"]),
        config=dict(description),
        dir=str(folder),
        settings=wandb.Settings(silent=True, console="off", init_timeout=float(options["timeout_s"])),
    )


def _run_id(folder: Path) -> str:
    file = folder / _ID_FILE
    if not file.is_file():
        file.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _warn_offline(reason: str, folder: Path):
    _LOG.warning("%s: the run is logged offline; upload it later with: wandb sync %s", reason, folder / "wandb" / "*")


def _has_key() -> bool:
    """Return True if wandb can log in without a prompt."""
    if any(os.environ.get(name) for name in _KEY_VARIABLES):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)).hostname
    home = Path.home()
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]
    try:
        return any(server in netrc.netrc(file).hosts for file in files if file.is_file())
    except (netrc.NetrcParseError, OSError):
        return False


def _grouped(name: str) -> str:
    """Return the grouped name of a metric: `eval/loss` for `eval_loss`, `train/NAME` for a name without a group."""
    if "/" in name:
        return name
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
