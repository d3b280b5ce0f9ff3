"""nbval over the sample: what is compared, what is not, and that the command says so."""

from __future__ import annotations

import nbformat
import pytest

from labkit.notebooks.__main__ import main
from labkit.notebooks.build import write

from .test_lint import find


def check(folder, *options):
    return main(["check", "--folder", str(folder), *options])


@pytest.mark.parametrize("options", [(), ("--jobs", "2")])
def test_changed_words_and_lost_outputs_are_seen(sample, capfd, options):
    notebook = sample.read()
    find(notebook, "guess.compare").outputs[0].text = "no guess kept; measured: 9.99\n"
    find(notebook, "figures.show(").outputs[0].data["text/plain"] = "Figure: A line that falls."
    find(notebook, "between 0 and 1").outputs = []
    write(notebook, sample.notebook)
    assert check(sample.notebook.parent, *options) == 1
    assert "3 failed" in capfd.readouterr().out


def test_pixels_markup_and_warnings_are_not_compared_nor_does_the_machine_matter(sample):
    notebook = sample.read()
    figure = find(notebook, "figures.show(").outputs[0]
    figure.data["text/html"] = '<img alt="A line that rises from 0 to 2." src="other">'
    cell = find(notebook, "between 0 and 1")
    cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning\n"))
    write(notebook, sample.notebook)
    assert check(sample.notebook.parent, "--other-cpu") == 0
