"""The notebooks (a run, a sweep, a table) run from first cell to last; their outputs name no machine."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# name: (outputs at least, what the text of one begins with)
NOTEBOOKS = {
  "tour": (8, "LoadedRun("),
  "sweep": (6, "Ledger(8 runs, 8 done)"),
  "table": (6, "<LawFit: chinchilla on 55 runs"),
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_there_and_name_no_place(name):
  path = ROOT / f"experiments/{name}.ipynb"
  cells = json.loads(path.read_text())["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
  assert sum(bool(cell["outputs"]) for cell in code) >= NOTEBOOKS[name][0]
  assert not any(
    "output_type" in o and o["output_type"] == "error" for c in code for o in c["outputs"]
  )
  assert str(pathlib.Path.home()) not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(name, tmp_path):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  path = ROOT / f"experiments/{name}.ipynb"
  notebook = nbformat.read(path, 4)
  for cell in notebook.cells:  # leaves the repository's own runs/ alone
    cell.source = cell.source.replace("runs/tour", str(tmp_path / "tour"))
    cell.source = cell.source.replace("runs/notebook", str(tmp_path / "notebook"))
  where = {"metadata": {"path": str(path.parent)}}
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
  shown = [
    o["data"]["text/plain"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o
  ]
  assert any(text.startswith(NOTEBOOKS[name][1]) for text in shown)
