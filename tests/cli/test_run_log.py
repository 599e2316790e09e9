"""Metrics reach wandb or its files without any prompt: real processes, no key, no terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamingvlm.cli import run_log
from streamingvlm.cli.run_log import open_run_log
from streamingvlm.errors import ConfigError

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "name": "wandb",
    "mode": "online",
    "project": "tests",
    "entity": None,
    "run_name": None,
    "tags": [],
    "timeout_s": 3,
}

LOG_A_RUN = """
import json, logging, sys
from types import SimpleNamespace
from streamingvlm.cli.run_log import open_run_log

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
with open_run_log(json.loads(sys.argv[1]), folder=sys.argv[2], description={"seed": 1}) as callbacks:
    print(len(callbacks), "callbacks")
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    for callback in callbacks:
        callback.on_log(None, state, None, {"loss": 1.5, "eval_loss": 2.0, "vision/hit_rate": 0.5})
        line = SimpleNamespace(start_s=0.0, said="shot", truth="goal")
        callback.show(1, SimpleNamespace(lines=[line]))
print("done")
"""


def log_a_run(options, folder, **environment):
    """In a process of its own, with no key, no home, and standard input closed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    kept |= {"HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", LOG_A_RUN, json.dumps(options), folder / "run"],
        env=kept | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def files_of(folder):
    return list((folder / "run").rglob("*.wandb"))


def test_without_a_key_a_run_is_logged_offline_without_a_prompt(tmp_path):
    result = log_a_run(OPTIONS, tmp_path)
    assert (result.returncode, result.stdout) == (0, "1 callbacks\ndone\n"), result.stderr
    assert [line for line in result.stderr.splitlines() if "wandb sync" in line] == result.stderr.splitlines()
    (file,) = files_of(tmp_path)
    assert file.parent.name.startswith("offline-run-")
    content = file.read_bytes()
    assert all(name in content for name in (b"train/loss", b"eval/loss", b"vision/hit_rate", b"held_out/commentary"))
    (table,) = (tmp_path / "run").rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[0.0, "shot", "goal"]]


def test_with_a_key_but_no_server_a_run_goes_offline_after_the_timeout(tmp_path):
    unreachable = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = log_a_run(OPTIONS, tmp_path, **unreachable)
    assert result.returncode == 0, result.stderr
    assert "cannot be reached" in result.stderr
    assert any(file.parent.name.startswith("offline-run-") for file in files_of(tmp_path))


def test_a_failed_run_is_closed_and_its_error_raised(tmp_path):
    options = OPTIONS | {"mode": "offline"}
    opened = open_run_log(options, folder=tmp_path / "run", description={})
    with pytest.raises(RuntimeError, match="broke"), opened as (log,):
        raise RuntimeError("the run broke")
    with pytest.raises(Exception, match="finished"):
        log.run.log({"loss": 1.0})
    assert len(files_of(tmp_path)) == 1


@pytest.mark.parametrize("options", [{"name": "none"}, OPTIONS | {"mode": "disabled"}])
def test_no_logger_leaves_no_files(tmp_path, options):
    with open_run_log(options, folder=tmp_path / "run", description={}) as callbacks:
        assert callbacks == []
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with open_run_log(OPTIONS, folder=tmp_path / "run", description={}) as callbacks:
        assert callbacks == []


@pytest.mark.parametrize("wrong", [{"name": "tensorboard"}, {"mode": "maybe"}])
def test_unknown_loggers_and_modes_are_refused(wrong):
    with pytest.raises(ConfigError, match="choose one of"):
        run_log.check_logger(OPTIONS | wrong)


def test_a_resumed_run_keeps_its_id(tmp_path):
    assert run_log._run_id(tmp_path) == run_log._run_id(tmp_path)


def test_a_key_is_found_where_wandb_stores_it(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not run_log._has_key()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert run_log._has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not run_log._has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert run_log._has_key()
