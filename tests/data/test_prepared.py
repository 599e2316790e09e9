"""Prepared data is read back in order, and a damaged folder is an error."""

import json
import shutil

import pytest

from streamingvlm.data.prepared import PreparedData
from streamingvlm.data.prepared_tables import PreparedDataWriter
from streamingvlm.errors import DataError

ROW = {"id": "a", "video": "a.mp4", "start_s": 0.0, "end_s": 1.0, "num_turns": 1, "lines": ["hi"], "questions": []}


@pytest.fixture
def folder(tmp_path):
    with PreparedDataWriter(tmp_path / "prepared") as writer:
        for number in range(600):
            writer.add({**ROW, "id": str(number)}, [{"recording": str(number), "first_turn": 0, "split": "train"}])
        writer.finish({"turn_s": 1.0, "video_root": "/videos"})
    return tmp_path / "prepared"


def opened(folder, tmp_path):
    return PreparedData.open(folder, cache_folder=tmp_path / "cache")


def test_all_rows_come_back_in_their_order(folder, tmp_path):
    data = opened(folder, tmp_path)
    assert data.recordings["id"] == data.chunks["recording"] == [str(number) for number in range(600)]
    assert data.recordings[7]["lines"] == ["hi"]


def test_the_folder_has_its_name_only_once_it_is_complete(tmp_path):
    with PreparedDataWriter(tmp_path / "prepared") as writer:
        writer.add(ROW, [])
        assert not (tmp_path / "prepared").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no prepared data; create it: streamingvlm prepare"):
        opened(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["recordings.parquet", "chunks.parquet"])
def test_a_missing_or_truncated_table_is_an_error(folder, tmp_path, name):
    table = folder / name
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{name} is damaged"):
        opened(folder, tmp_path)
    table.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        opened(folder, tmp_path)


@pytest.mark.parametrize(
    "text, reason", [(json.dumps({"version": 99}), "version 99"), ("{", "cannot be read"), ("[]", "version None")]
)
def test_an_unreadable_manifest_is_an_error(folder, tmp_path, text, reason):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        opened(folder, tmp_path)


def test_a_folder_that_was_made_again_is_read_again(folder, tmp_path):
    assert opened(folder, tmp_path).recordings.num_rows == 600
    shutil.rmtree(folder)
    with PreparedDataWriter(folder) as writer:
        writer.add(ROW, [{"recording": "a"}])
        writer.finish({"turn_s": 1.0, "video_root": "/videos"})
    assert opened(folder, tmp_path).recordings["id"] == ["a"]
