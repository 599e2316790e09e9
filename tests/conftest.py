"""Fixtures that many tests share: tiny random checkpoints of each family, and recorded runs of the released code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from recordings import CARRIED_GOLDEN, full_golden_folder, golden_folders
from tiny_inputs import save_tiny_checkpoint

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.main import run
from streamingvlm.cli.verbs import VERBS

# A machine that has other work to do stalls for seconds: how long an example takes says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny random checkpoint by its model type; it is shared, so tests must not write there."""
    folders: dict[str, Path] = {}

    def checkpoint(model_type: str = "qwen2_5_vl") -> Path:
        if model_type not in folders:
            folders[model_type] = save_tiny_checkpoint(tmp_path_factory.mktemp(model_type), model_type)
        return folders[model_type]

    return checkpoint


@pytest.fixture
def mean_loss() -> Callable[[torch.nn.Module, dict], torch.Tensor]:
    """Give the mean loss of a commentator over a collated batch; the trainer's bookkeeping is none of its business."""

    def loss(module, batch):
        inputs = {name: value for name, value in batch.items() if name not in ("names", "num_supervised", "weights")}
        return module(**inputs)["losses"].mean()

    return loss


@pytest.fixture(scope="session", params=golden_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def golden(request: pytest.FixtureRequest) -> Path:
    """Give each folder of recorded runs in turn."""
    return request.param


@pytest.fixture(scope="session")
def carried_golden() -> Path:
    """Give the recorded runs that the tests carry with them."""
    return CARRIED_GOLDEN


@pytest.fixture(scope="session")
def full_golden() -> Path | None:
    """Give the full recording where it is beside the checkout, else None."""
    return full_golden_folder()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_command(folder, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a verb or a command in this process; returns exit code, standard output and standard error."""

    def run_with(command: Command | str, *words):
        code = 0
        try:
            run(VERBS[command] if isinstance(command, str) else command, [*map(str, words)])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run_with
