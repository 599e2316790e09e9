"""A checkpoint is used once it is complete, and never before."""

import logging

import pytest

from streamingvlm.errors import ConfigError
from streamingvlm.training.checkpoints import (
    check_free_space,
    check_resume_invariants,
    checkpoint_folder,
    checkpoints,
    commit_checkpoint,
    is_complete,
    keep_newest,
    latest_complete_checkpoint,
    remove_incomplete,
)

RUN = {"seed": 1, "batch_size": 8}


def write(folder, step, *, complete=True):
    checkpoint = checkpoint_folder(folder, step)
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"0123456789")
    (checkpoint / "sub" / "state.pt").write_bytes(b"abc")
    if complete:
        commit_checkpoint(checkpoint, RUN)
    return checkpoint


def test_the_latest_complete_one_is_chosen_by_its_number(tmp_path):
    assert latest_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (10, 9, 100):
        write(tmp_path, step)
    write(tmp_path, 200, complete=False)
    assert latest_complete_checkpoint(tmp_path).name == "checkpoint-100"
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (9, 10, 100, 200)]


@pytest.mark.parametrize("damage", ["cut short", "lost", "marker cut short", "marker unfinished"])
def test_a_damaged_one_is_not_complete(tmp_path, damage):
    checkpoint = write(tmp_path, 5)
    if damage == "cut short":
        (checkpoint / "model.safetensors").write_bytes(b"0123")
    elif damage == "lost":
        (checkpoint / "sub" / "state.pt").unlink()
    elif damage == "marker cut short":
        (checkpoint / "complete.json").write_text((checkpoint / "complete.json").read_text()[:20])
    else:
        (checkpoint / "complete.json").rename(checkpoint / "complete.json.part")
    assert not is_complete(checkpoint)


def test_incomplete_ones_are_removed_and_logged(tmp_path, caplog):
    write(tmp_path, 5)
    write(tmp_path, 6, complete=False)
    (tmp_path / "checkpoint-notes").mkdir()
    with caplog.at_level(logging.WARNING):
        remove_incomplete(tmp_path)
    assert "checkpoint-6 is incomplete" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-notes"]


def test_the_newest_are_kept_and_incomplete_ones_do_not_count(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 4, complete=False)
    keep_newest(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_a_run_with_other_invariants_may_not_resume(tmp_path):
    checkpoint = write(tmp_path, 5)
    check_resume_invariants(checkpoint, RUN)
    with pytest.raises(ConfigError, match="batch_size=8, not 16"):
        check_resume_invariants(checkpoint, RUN | {"batch_size": 16})


def test_too_little_disk_space_is_reported_in_advance(tmp_path):
    check_free_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ConfigError, match="free some space"):
        check_free_space(tmp_path / "not" / "there" / "yet", 10**18)
