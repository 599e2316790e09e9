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
    committed = [[output.output_type for output in cell.get("outputs", [])] for cell in cells.cells]
    assert any("image/png" in output.get("data", {}) for cell in cells.cells for output in cell.get("outputs", []))
    NotebookClient(cells, timeout=300, coalesce_streams=True, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in cells.cells for output in cell.get("outputs", [])]
    assert not [output for output in said if output.output_type == "error"]
    assert [[output.output_type for output in cell.get("outputs", [])] for cell in cells.cells] == committed
