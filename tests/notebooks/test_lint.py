"""Each rule, with a notebook that breaks it and no other."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from labkit.notebooks import rules_code, rules_outputs, rules_text
from labkit.notebooks.__main__ import main
from labkit.notebooks.build import write
from labkit.notebooks.cleaning import VIEW
from labkit.notebooks.findings import Subject, emoji_in
from labkit.notebooks.lint import RULES, lint
from labkit.notebooks.rules_text import words


def find(notebook, part):
    """The cell whose source holds `part`."""
    return next(cell for cell in notebook.cells if part in cell.source)


def replace(part, old, new):
    """An edit of the cell that holds `part`."""

    def edit(notebook):
        cell = find(notebook, part)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return edit


def output_of(part, **fields):
    """An edit that gives the cell that holds `part` one output of these fields."""

    def edit(notebook):
        find(notebook, part).outputs = [nbformat.from_dict(fields)]

    return edit


def stream(text, name="stdout", part="between 0 and 1"):
    return output_of(part, output_type="stream", name=name, text=text)


def display(part="figures.show(", **data):
    bundle = {key.replace("__", "/"): value for key, value in data.items()}
    return output_of(part, output_type="display_data", metadata={}, data=bundle)


def add_code(source, count=None, tags=(), at=3):
    def edit(notebook):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
        notebook.cells.insert(at, cell)
        for number, code in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            code.execution_count = number
        if count != "in order":
            cell.execution_count = count

    return edit


def add_text(source, *tags):
    def edit(notebook):
        cell = nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})
        notebook.cells.insert(3, cell)

    return edit


def drop(part):
    def edit(notebook):
        notebook.cells.remove(find(notebook, part))

    return edit


def tag(part, *tags):
    def edit(notebook):
        find(notebook, part).metadata.tags = list(tags)

    return edit


def code(source, *tags):
    return add_code(source, "in order", tags)


def same_picture_twice(notebook):
    cell = find(notebook, "figures.show(")
    cell.outputs = [cell.outputs[0], cell.outputs[0]]


def nothing_executed(notebook):
    find(notebook, 'print("between').execution_count = None


def heavy(notebook):
    find(notebook, "between 0 and 1").outputs[0].text = "heavy " * 300_000


def no_kernel(notebook):
    del notebook.metadata["kernelspec"]


BROKEN = {
    "header: no goals": (replace("A sample", "**You will be able to**", "Goals:"), "header"),
    "header: no minutes": (replace("A sample", "5 minutes", "a while"), "header"),
    "header: no prerequisites": (replace("A sample", "**Before this:** nothing", ""), "header"),
    "header: another number": (replace("A sample", "# 00 ·", "# 07 ·"), "header"),
    "header: a code cell": (drop("A sample"), "header"),
    "61 words": (add_text("word " * 61), "text-length"),
    "121 words of exercise": (add_text("word " * 121, "exercise-text"), "text-length"),
    "181 words of answer": (
        replace("Why does a notebook", "Because", "word " * 181),
        "text-length",
    ),
    "a second title": (add_text("# Another title"), "title"),
    "no reading list": (drop("What to read"), "last-sections"),
    "a reading list without links": (
        replace("What to read", "[nbval](https://nbval.readthedocs.io)", "nbval"),
        "last-sections",
    ),
    "interview not last": (
        replace("Explain it in an interview", "Explain it", "Explain this"),
        "last-sections",
    ),
    "an open answer": (replace("Why does a notebook", "<details>", "<div>"), "interview"),
    "a dead link": (add_text("See [the next](17_nowhere.ipynb)."), "link"),
    "a picture without alt": (add_text("![](00_sample.ipynb)"), "alt-text"),
    "an img without alt": (add_text('<img src="https://a.b/c.png">'), "alt-text"),
    "emoji in a text": (add_text("Well done \U0001f389"), "emoji"),
    "an unfinished text": (add_text("TODO say more"), "unfinished"),
    "an unknown tag": (add_text("A text.", "raises-exception"), "tag"),
    "a tag to skip": (tag("between 0 and 1", "nbval-skip"), "tag"),
    "21 lines": (code("\n".join(f"x{i} = {i}" for i in range(21))), "code-length"),
    "an empty cell": (code(" "), "code-length"),
    "a line magic": (code("%matplotlib inline"), "magic"),
    "a cell magic": (code("%%time\nx = 1"), "magic"),
    "a shell command": (code("!nvidia-smi"), "magic"),
    "a captured command": (code("files = !ls"), "magic"),
    "help": (code("print?"), "magic"),
    "a hidden magic": (code("get_ipython().run_line_magic('time', '1')"), "magic"),
    "no Python": (code("x = = 1"), "magic"),
    "a comment to nbval": (code("# NBVAL_IGNORE_OUTPUT\nx = 1"), "nbval-comment"),
    "a silenced result": (code("x = 1;"), "semicolon"),
    "interact": (code("interact(print, x=3)"), "widget"),
    "an Output widget": (code("out = widgets.Output()"), "widget"),
    "ignored and never asserted": (code("print(1)", "nbval-ignore-output"), "ignored-output"),
    "a check in an untagged cell": (tag('check("00.1"'), "exercise"),
    "a stub that was changed": (replace("def weight_gib", "...", "return 0"), "exercise"),
    "no text above an exercise": (drop("### Exercise 00.1"), "exercise"),
    "an exercise left out": (drop('check("00.1"'), "exercise"),
    "never executed": (nothing_executed, "executed"),
    "executed out of order": (add_code("x = 1", 9), "executed"),
    "an error": (
        output_of("between", output_type="error", ename="E", evalue="bad", traceback=[]),
        "error",
    ),
    "a warning": (stream("UserWarning: look here\n", "stderr"), "stderr"),
    "a bare figure": (display(image__png="aGk=", text__plain="<Figure>"), "alt-text"),
    "a figure without alt": (display(text__html="<img src='x'>"), "alt-text"),
    "a figure with a poor alt": (display(text__html='<img alt="a plot" src="x">'), "alt-text"),
    "one alt for two": (same_picture_twice, "alt-text"),
    "a bare widget": (display(**{VIEW: {}, "text__plain": "IntSlider()"}), "alt-text"),
    "markup that nothing compares": (
        display(text__html="<table>", text__plain="<IPython.core.display.HTML object>"),
        "blind-output",
    ),
    "a path of this machine": (stream("saved to /home/ada/model\n"), "path"),
    "a Windows path": (stream("saved to C:\\Users\n"), "path"),
    "a progress bar": (stream("Loading:  50%|#    | 37/74 [00:01<00:01]\n"), "progress-bar"),
    "an address": (stream("<function f at 0x7f2a10b2c0d0>\n"), "address"),
    "a time": (stream("took 3.21 s\n"), "time"),
    "emoji in an output": (stream("done \u2705\n"), "emoji"),
    "too large": (heavy, "size"),
    "no kernel": (no_kernel, "kernelspec"),
}


@pytest.fixture(scope="module")
def rules_broken(built_folder):
    """Function from an edit of the sample to the rules that the edited notebook breaks."""
    path = built_folder / "00_sample.ipynb"

    def broken(edit, name="00_sample"):
        notebook = nbformat.read(path, as_version=4)
        edit(notebook)
        subject = Subject(name, notebook, path)
        return {finding.rule for rule in RULES for finding in rule(subject)}

    return broken


def test_the_sample_keeps_every_rule(rules_broken, sample):
    assert rules_broken(lambda notebook: None) == set()
    assert lint(sample) == []


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_sees_what_it_is_for(rules_broken, name):
    edit, rule = BROKEN[name]
    assert rules_broken(edit) == {rule}


def test_every_rule_has_a_notebook_that_breaks_it():
    named = set()
    for module in (rules_text, rules_code, rules_outputs):
        text = Path(module.__file__).read_text(encoding="utf-8")
        named |= set(re.findall(r'finding\(\s*[\w.]+,\s*"([a-z-]+)"', text))
    assert named == {rule for _, rule in BROKEN.values()}


def test_a_chapter_needs_four_exercises_and_three_interview_questions(rules_broken):
    assert {"exercise", "interview"} <= rules_broken(lambda notebook: None, name="99_sample")


def test_where_a_time_is_not_compared_it_may_be_printed(rules_broken):
    edit = stream("took 3.21 s\n", part="different in every run")
    assert rules_broken(edit) == set()


@pytest.mark.parametrize(
    ("markdown", "count"),
    [
        ("one two", 2),
        ("[a link](https://very.long/address) here", 3),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 4),
        ("- **bold** and `code`", 3),
        ("<details><summary>open</summary>\n\nthe answer", 3),
    ],
)
def test_words_are_those_that_one_reads(markdown, count):
    assert words(markdown) == count


def test_mathematics_and_marks_are_no_emoji():
    assert (
        emoji_in("x\u0302 = s\u00b7(q \u2212 z), \u2211 \u2192 \u2264 \u00d7 \u2713 \u2717") == ""
    )
    assert emoji_in("\U0001f680 \u2728") == "U+1F680 U+2728"


def test_the_command_names_place_and_rule(sample, capsys):
    notebook = sample.read()
    add_text("word " * 61)(notebook)
    write(notebook, sample.notebook)
    assert main(["lint", "--folder", str(sample.notebook.parent)]) == 1
    printed = capsys.readouterr().out
    assert "00_sample, cell 3: 61 words; 60 at most [text-length]" in printed
    assert "[in-step]" in printed


def test_a_source_can_be_looked_at_before_it_is_built(sample, capsys):
    sample.notebook.unlink()
    command = ["lint", "--source", "--folder", str(sample.notebook.parent)]
    assert main(command) == 0
    assert main([word for word in command if word != "--source"]) == 1
    assert "00_sample: never built" in capsys.readouterr().out
    sample.source.write_text("")
    assert main(command) == 1
    assert "the first cell must be the header" in capsys.readouterr().out
