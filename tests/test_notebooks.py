from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom(notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = nbformat.read(notebook, as_version=4)
    committed = [output_kinds(cell) for cell in cells.cells]
    assert any("image/png" in kinds for cell in committed for kinds in cell)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(cells, timeout=300, coalesce_streams=True, resources=folder).execute()
    assert [output_kinds(cell) for cell in cells.cells] == committed


def output_kinds(cell) -> list[list[str]]:
    """Media types of each output of a cell, without warnings, which differ between environments."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    assert not [output for output in outputs if output.output_type == "error"]
    return [sorted(output.get("data", [output.output_type])) for output in outputs]
