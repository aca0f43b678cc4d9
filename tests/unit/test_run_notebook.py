"""Notebooks: run by this Python, rendered without the network, kept when they fail."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.report.run_notebook import execute, render

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def notebook(path, *codes):
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("word = ''")]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(code) for code in codes]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "absent", "display_name": "", "language": "python"}
    path.write_text(nbformat.writes(book))
    return path


def test_runs_in_this_python_and_renders_alone(tmp_path):
    source = notebook(
        tmp_path / "n.ipynb",
        "import sys\nfrom IPython.display import Markdown\nMarkdown(f'**{word}** {sys.prefix}')",
    )
    done, page = tmp_path / "done.ipynb", tmp_path / "page.html"
    execute(source, {"word": "given"}, done, tmp_path / "failed.ipynb")
    render(done, page, "a <title>")
    text = page.read_text()
    assert "<strong>given</strong>" in text
    assert sys.prefix in text
    assert "<title>a &lt;title&gt;</title>" in text
    assert "import sys" not in text
    assert re.search(r"<script|<link|(src|href)=\"https?:", text) is None
    assert not (tmp_path / "failed.ipynb").exists()


def test_a_notebook_imports_the_workflow_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = notebook(tmp_path / "n.ipynb", "from workflow_scripts.report import results_page")
    execute(source, {}, tmp_path / "done.ipynb", tmp_path / "failed.ipynb")


def test_a_failed_notebook_is_kept_and_its_output_is_not(tmp_path):
    source = notebook(tmp_path / "n.ipynb", "print('so far')", "1 / 0")
    failed = tmp_path / "failed.ipynb"
    with pytest.raises(UserError, match="ZeroDivisionError"):
        execute(source, {}, tmp_path / "done.ipynb", failed)
    assert "so far" in failed.read_text()
    assert not (tmp_path / "done.ipynb").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs_and_with_one_parameters_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    codes = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in codes)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in codes) == 1
