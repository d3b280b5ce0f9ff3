from __future__ import annotations

import nbformat
import pytest

from labkit.notebooks.build import write
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.source import differences, notebook_from, pairs

from .conftest import SAMPLE


def test_cells_keep_their_kind_text_and_tags():
    notebook = notebook_from(SAMPLE)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# 00 · A sample\n\n**What does")
    exercise = next(c for c in notebook.cells if c.metadata.get("tags") == ["exercise-00.1"])
    assert exercise.source.endswith('...\n\n\ncheck("00.1", weight_gib)')
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_an_edit_changes_only_the_edited_cells_id(sample):
    before = [cell.id for cell in notebook_from(sample.source).cells]
    text = sample.source.read_text().replace("between 0 and 1", "in the unit interval")
    sample.source.write_text(text)
    after = [cell.id for cell in notebook_from(sample.source).cells]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert len(set(after)) == len(after)


def test_equal_cells_get_different_ids(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\nx = 1\n")
    assert len({cell.id for cell in notebook_from(source).cells}) == 3


def test_names_are_numbers_stems_or_files(folder):
    for name in ("00", "00_sample", "notebooks/00_sample.ipynb"):
        assert [pair.name for pair in pairs([name], folder)] == ["00_sample"]
    with pytest.raises(NotebookError, match=r"no notebook '99'.*00_sample"):
        pairs(["99"], folder)
    with pytest.raises(NotebookError, match="no notebook sources"):
        pairs(folder=folder / "source")


def test_a_built_notebook_is_in_step(sample):
    assert differences(sample) == []


def _edit_cell(notebook):
    notebook.cells[3].source += "\n# an edit by hand"


def _drop_cell(notebook):
    del notebook.cells[-1]


def _retag(notebook):
    notebook.cells[3].metadata.tags = ["interview"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [(_edit_cell, "cell 3: source"), (_drop_cell, "cells"), (_retag, "cell 3: metadata")],
)
def test_an_edit_of_the_notebook_alone_is_seen(sample, edit, said):
    notebook = sample.read()
    edit(notebook)
    write(notebook, sample.notebook)
    assert any(said in problem for problem in differences(sample))


def test_an_edit_of_the_source_alone_is_seen(sample):
    sample.source.write_text(sample.source.read_text() + "\n")
    assert "another text" in differences(sample)[0]


def test_a_missing_notebook_is_named(sample):
    sample.notebook.unlink()
    assert differences(sample) == ["never built"]
    with pytest.raises(NotebookError, match=r"never built.*build 00_sample"):
        sample.read()


def test_the_source_is_a_valid_notebook():
    nbformat.validate(notebook_from(SAMPLE))
