"""The notebook runs from its first cell to its last, and its outputs name no machine."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments/tour.ipynb"


def test_outputs_are_there_and_name_no_place():
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
  assert sum(bool(cell["outputs"]) for cell in code) >= 8
  assert not any(
    "output_type" in o and o["output_type"] == "error" for c in code for o in c["outputs"]
  )
  assert str(pathlib.Path.home()) not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  notebook = nbformat.read(NOTEBOOK, 4)
  for cell in notebook.cells:  # leaves the repository's own runs/ alone
    cell.source = cell.source.replace("runs/tour", str(tmp_path / "tour"))
  where = {"metadata": {"path": str(NOTEBOOK.parent)}}
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
  shown = [
    o["data"]["text/plain"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o
  ]
  assert any(text.startswith("LoadedRun(") for text in shown)
