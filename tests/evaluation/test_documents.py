"""Sections of a document that a command writes, beside text of people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.documents import check_writable, write_part

PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=40)
BEGIN, END = "<!-- table: written by a command -->", "<!-- end of table -->"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("documents") / "results.md"


def _bytes(text):
    return text.encode("utf-8")


@given(before=PROSE, after=PROSE, old=PROSE, new=PROSE)
def test_all_around_the_marks_stays_to_the_last_byte(path, before, after, old, new):
    path.write_bytes(_bytes(f"{before}{BEGIN}\n{old}\n{END}{after}"))
    write_part(path, "table", new)
    once = path.read_bytes()
    assert once == _bytes(f"{before}{BEGIN}\n{new.strip()}\n{END}{after}")
    write_part(path, "table", new)
    assert path.read_bytes() == once


@given(before=PROSE, new=PROSE)
def test_a_part_that_is_new_comes_at_the_end_and_is_found_there_again(path, before, new):
    path.write_bytes(_bytes(before))
    write_part(path, "table", "first")
    write_part(path, "other", "second")
    write_part(path, "table", new)
    text = path.read_bytes().decode()
    assert text.startswith(before) and text.count(BEGIN) == text.count(END) == 1
    assert text.index(END) < text.index("second")


def test_a_document_that_is_not_there_is_made(tmp_path):
    write_part(tmp_path / "docs" / "results.md", "table", "| a |")
    assert (tmp_path / "docs" / "results.md").read_text() == f"{BEGIN}\n| a |\n{END}\n"


@pytest.mark.parametrize("text", [BEGIN, END, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", f"{BEGIN} {END} {END}"])
def test_unpaired_markers_are_reported_and_nothing_is_written(tmp_path, text):
    path = tmp_path / "results.md"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results\.md.*take both out"):
        write_part(path, "table", "new")
    assert path.read_text() == text


def test_an_unwritable_file_is_reported_beforehand(tmp_path):
    check_writable(tmp_path / "new" / "result.json", tmp_path / "page.html")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ConfigError, match="new cannot be written; name a file"):
        check_writable(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"result\.json cannot be written \(.*\); name a file in another folder"):
        check_writable(tmp_path / "file" / "result.json")
