"""The store keeps what it was given, stays within its bounds, and recovers from damage."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamingvlm.errors import ConfigError
from streamingvlm.model.vision import VisionFeatures
from streamingvlm.training.feature_store import FeatureStore

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20


def features(seed=0, dtype=torch.float32, num_tokens=6, num_levels=0):
    generator = torch.Generator().manual_seed(seed)
    stack = torch.randn(num_levels + 1, num_tokens, 8, generator=generator).to(dtype)
    return VisionFeatures(stack[0], (1, 2, num_tokens // 2), tuple(stack[1:]))


def assert_same(read, written):
    assert read.grid == written.grid
    assert len(read.deepstack) == len(written.deepstack)
    for mine, other in zip((read.embeddings, *read.deepstack), (written.embeddings, *written.deepstack), strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def key(number):
    return f"{number:064x}"[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_levels", [0, 3])
def test_another_store_on_the_same_folder_reads_the_same_features(tmp_path, dtype, num_levels):
    written = features(dtype=dtype, num_levels=num_levels)
    FeatureStore(tmp_path, max_bytes=MEBIBYTE).put(key(1), written)
    other = FeatureStore(tmp_path, max_bytes=MEBIBYTE)
    assert_same(other.get(key(1)), written)
    assert other.get(key(2)) is None
    assert [path.suffix for path in files_in(tmp_path)] == [".safetensors"]


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=40), bound=st.integers(0, 6000))
def test_the_files_never_pass_the_bound(tmp_path_factory, numbers, bound):
    folder = tmp_path_factory.mktemp("store")
    store = FeatureStore(folder, max_bytes=bound)
    for number, size in numbers:
        store.put(key(number), features(number, num_tokens=2 * size))
        assert sum(path.stat().st_size for path in files_in(folder)) <= bound


def test_the_least_recently_used_entry_is_evicted_first(tmp_path):
    size = _entry_bytes(tmp_path / "one")
    store = FeatureStore(tmp_path / "many", max_bytes=10 * size)
    for number in range(10):
        store.put(key(number), features(number))
        time.sleep(0.002)  # file systems stamp times by the tick
    assert store.get(key(0)) is not None
    store.put(key(10), features(10))
    kept = [number for number in range(11) if store.get(key(number)) is not None]
    assert 0 in kept and 10 in kept and 1 not in kept
    assert store.counts.num_evicted == 11 - len(kept)
    assert kept == [0, *range(kept[1], 11)]


def _entry_bytes(folder):
    FeatureStore(folder, max_bytes=MEBIBYTE).put(key(0), features())
    return files_in(folder)[0].stat().st_size


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_entry_is_counted_removed_and_encoded_again(tmp_path, damage):
    store = FeatureStore(tmp_path, max_bytes=MEBIBYTE)
    store.put(key(1), features())
    (file,) = files_in(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"flip": content, "cut": content[:-9], "empty": b"", "text": b"not a tensor" * 9}[damage])
    assert store.get(key(1)) is None
    assert store.counts.num_corrupt == 1
    assert files_in(tmp_path) == []
    store.put(key(1), features())
    assert_same(store.get(key(1)), features())


def test_memory_is_bounded_and_saves_reads(tmp_path):
    one = features().embeddings.nbytes
    store = FeatureStore(tmp_path, max_bytes=MEBIBYTE, max_memory_bytes=2 * one)
    for number in range(3):
        store.put(key(number), features(number))
    for file in files_in(tmp_path):
        file.unlink()
    assert [store.get(key(number)) is not None for number in range(3)] == [False, True, True]


def test_without_a_folder_features_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(None, max_bytes=MEBIBYTE, max_memory_bytes=MEBIBYTE)
    store.put(key(1), features())
    assert_same(store.get(key(1)), features())
    assert store.num_disk_bytes == 0 and files_in(tmp_path) == []


def test_stale_partial_files_of_killed_processes_are_removed(tmp_path):
    store = FeatureStore(tmp_path, max_bytes=MEBIBYTE)
    store.put(key(1), features())
    subfolder = files_in(tmp_path)[0].parent
    young, old = subfolder / "a.part", subfolder / "b.part"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    (entry,) = (path for path in files_in(tmp_path) if path.suffix == ".safetensors")
    assert FeatureStore(tmp_path, max_bytes=MEBIBYTE).num_disk_bytes == entry.stat().st_size
    assert young.exists() and not old.exists()


def test_a_read_only_disk_disables_caching_and_not_the_run(tmp_path, caplog):
    store = FeatureStore(tmp_path, max_bytes=MEBIBYTE)
    (tmp_path / key(1)[:2]).write_text("a file in the place of the subfolder")
    assert_same(store.put(key(1), features()), features())
    store.put(key(1), features())
    assert store.counts.num_failed_writes == 2
    assert len([record for record in caplog.records if "goes on without" in record.message]) == 1


WRITER = """
import sys, torch
from streamingvlm.model.vision import VisionFeatures
from streamingvlm.training.feature_store import FeatureStore

store = FeatureStore(sys.argv[1], max_bytes=15_000)
for step in range(60):
    number = step * int(sys.argv[2]) % 31
    name = f"{number:064x}"[::-1]
    kept = store.get(name)
    assert kept is None or torch.equal(kept.embeddings, torch.full((40, 8), float(number)))
    store.put(name, VisionFeatures(torch.full((40, 8), float(number)), (1, 5, 8)))
assert store.counts.num_corrupt == 0
"""


def test_processes_share_a_folder_without_locks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, step], env=environment, stderr=subprocess.PIPE)
        for step in ("7", "11")
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == b""
        assert writer.returncode == 0
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 15_000 * 1.1
    assert {path.suffix for path in files_in(tmp_path)} == {".safetensors"}


def test_a_store_can_be_sent_to_a_worker(tmp_path):
    store = FeatureStore(tmp_path, max_bytes=MEBIBYTE)
    store.put(key(1), features())
    assert_same(pickle.loads(pickle.dumps(store)).get(key(1)), features())


def test_negative_bounds_and_impossible_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="-1 bytes"):
        FeatureStore(None, max_bytes=-1)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be created"):
        FeatureStore(tmp_path / "file" / "below", max_bytes=1)
