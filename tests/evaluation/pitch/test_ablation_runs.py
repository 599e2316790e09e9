"""Runs are streamed once, stored when they are complete, and found again."""

import shutil

import pytest

from streamingvlm.evaluation.pitch import ablation_runs
from streamingvlm.evaluation.pitch.ablation_runs import AblationRun, RunSetup, fingerprint, read_runs, run_missing
from streamingvlm.evaluation.pitch.ablation_tables import AblationRow
from streamingvlm.model.checkpoint import find_checkpoint

SETUP = RunSetup(model={"name": "pitch", "device": "cpu", "dtype": None}, duration_s=3, commit="abc")
RUNS = [
    AblationRun(row, seed, SETUP)
    for row in (AblationRow("a"), AblationRow("b", {"recompute": True}))
    for seed in (1, 2)
]


class BrokenOff(Exception):
    pass


def test_an_interrupted_table_resumes_with_the_first_missing_run(tmp_path, monkeypatch):
    watch, watched = ablation_runs._run, []

    def watch_two(job, path):
        if len(watched) == 2:
            raise BrokenOff
        watched.append(job)
        watch(job, path)

    monkeypatch.setattr(ablation_runs, "_run", watch_two)
    with pytest.raises(BrokenOff):
        run_missing(RUNS, tmp_path)
    monkeypatch.setattr(ablation_runs, "_run", lambda job, path: watched.append(job) or watch(job, path))
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(kept) == 2
    counts = []
    run_missing(RUNS, tmp_path, on_done=lambda done, total: counts.append((done, total)))
    assert watched == RUNS and counts == [(2, 4), (3, 4), (4, 4)]
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert [(run.name, run.seed, run.commit) for run in read_runs(RUNS, tmp_path)] == [
        ("a", 1, "abc"), ("a", 2, "abc"), ("b", 1, "abc"), ("b", 2, "abc"),
    ]  # fmt: skip
    run_missing(RUNS, tmp_path)
    assert watched == RUNS


def test_the_same_run_under_two_names_is_watched_once(tmp_path):
    jobs = [RUNS[0], AblationRun(AblationRow("another name"), 1, SETUP)]
    run_missing(jobs, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert [run.name for run in read_runs(jobs, tmp_path)] == ["a", "another name"]


def test_another_process_says_what_this_one_says(tmp_path):
    job = RUNS[2]
    run_missing([job], tmp_path / "here")
    run_missing([job], tmp_path / "there", workers=2)
    (here,), (there,) = (read_runs([job], tmp_path / name) for name in ("here", "there"))
    assert [second.said for second in here.seconds] == [second.said for second in there.seconds]


def test_a_second_training_under_the_same_name_is_another_checkpoint(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(find_checkpoint("pitch"), folder, ignore=shutil.ignore_patterns("*.mp4"))
    before = AblationRun(AblationRow("a", checkpoint=str(folder)), 1, SETUP).path
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    fingerprint.cache_clear()
    assert AblationRun(AblationRow("a", checkpoint=str(folder)), 1, SETUP).path != before
