"""The notebooks run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
#: The page that the last cell of a notebook names; every notebook has one.
PAGES = {"quickstart": "report.html", "discrete_units": "units.html", "layer_anchoring": "layers.html"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("espeakng_loader")
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    named = str(book.cells[-1].outputs[-1].data["text/plain"])
    assert PAGES[path.stem] in named
    assert Path(named.partition("'")[2].partition("'")[0]).is_file(), "the page is there"
