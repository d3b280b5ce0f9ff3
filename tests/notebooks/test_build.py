from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
import pytest

from labkit.notebooks.__main__ import main
from labkit.notebooks.build import build, write
from labkit.notebooks.cleaning import VIEW, clean, text_of


def test_a_built_notebook_holds_outputs_and_nothing_of_this_run(sample):
    notebook = sample.read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = "".join(text_of(output) for cell in code for output in cell.outputs)
    assert "no guess kept; measured: " in said
    assert "00.1 Memory of the weights: not attempted" in said
    assert set(notebook.metadata) == {"kernelspec", "labkit", "language_info"}
    assert "version" not in notebook.metadata.language_info
    assert str(sample.source.parent.parent) not in sample.notebook.read_text()


def test_a_widget_is_kept_as_its_text_and_its_picture(sample):
    outputs = [o for cell in sample.read().cells for o in cell.get("outputs", [])]
    kept = [o.data for o in outputs if text_of(o).startswith("Widget: ")]
    assert [set(data) for data in kept] == [{"text/plain"}, {"text/plain", "text/html"}]
    assert 'alt="A line that rises to 3."' in kept[1]["text/html"]


def test_a_widget_without_a_text_stays_for_the_lint_to_find():
    data = {VIEW: {"model_id": "abc"}, "text/plain": "VBox(children=(Text(value='a\\nb'),))"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data)])
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"language_info": {"name": "python"}}
    )
    assert VIEW in clean(notebook).cells[0].outputs[0].data


def test_a_second_build_gives_the_same_file_but_for_ignored_outputs(sample):
    before = sample.read()
    assert [written for _, written in build([sample], force=True)] == [True]
    after = sample.read()
    for old, new in zip(before.cells, after.cells, strict=True):
        if "nbval-ignore-output" not in old.metadata.get("tags", []):
            assert old == new
    assert before.metadata == after.metadata


def test_what_is_in_step_is_left_alone(sample, capsys):
    modified = sample.notebook.stat().st_mtime_ns
    assert main(["build", "00", "--folder", str(sample.notebook.parent)]) == 0
    assert capsys.readouterr().out == "00_sample.ipynb: in step\n"
    assert sample.notebook.stat().st_mtime_ns == modified


def test_a_failing_cell_stops_the_build_and_leaves_the_old_notebook(sample, capsys):
    before = sample.notebook.read_bytes()
    sample.source.write_text("# %%\nweights = 1 / 0\n")
    assert main(["build", "--folder", str(sample.notebook.parent)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert sample.notebook.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_notebook_and_no_rubbish(sample, monkeypatch):
    before = sample.notebook.read_bytes()
    monkeypatch.setattr("labkit.notebooks.build.nbformat.writes", lambda _: "half a\udcfffile")
    with pytest.raises(UnicodeEncodeError):
        write(sample.read(), sample.notebook)
    assert sample.notebook.read_bytes() == before
    assert {path.suffix for path in sample.notebook.parent.glob(".*")} == set()


def test_a_killed_build_leaves_the_old_notebook(sample):
    before = sample.notebook.read_bytes()
    mark = sample.notebook.parent / "running"
    sample.source.write_text(
        f"# %%\nimport os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))"
        "\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-m", "labkit.notebooks", "build"]
    builder = subprocess.Popen([*command, "--folder", str(sample.notebook.parent)])
    deadline = time.monotonic() + 120
    while not mark.exists() or not mark.read_text():
        assert builder.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    os.kill(int(mark.read_text()), signal.SIGKILL)  # the kernel notices much later by itself
    assert sample.notebook.read_bytes() == before


def test_the_build_runs_as_a_fresh_learner(sample, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("LABKIT_MODEL", "my/model")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sample.source.write_text(
        "# %%\nimport os, pathlib, tempfile\n"
        "print('mine' in os.environ['LABKIT_HOME'], 'LABKIT_MODEL' in os.environ)\n"
        "print(pathlib.Path.cwd().name)\n"
        f"print({str(tmp_path)!r} in tempfile.mkdtemp())\n"
    )
    before = {*tmp_path.iterdir()}
    list(build([sample]))
    assert text_of(sample.read().cells[0].outputs[0]) == "False False\nnotebooks\nTrue\n"
    assert {*tmp_path.iterdir()} == before  # no progress, and no temporary file of a cell


@pytest.mark.parametrize("last", ["pass", "1 / 0"])
def test_no_kernel_stays_behind(sample, tmp_path, last):
    path = tmp_path / "pid"
    write_pid = f"import os, pathlib\npathlib.Path({str(path)!r}).write_text(str(os.getpid()))"
    sample.source.write_text(f"# %%\n{write_pid}\n{last}\n")
    main(["build", "--folder", str(sample.notebook.parent)])
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_an_unknown_name_is_an_error_and_not_a_silent_nothing(folder, capsys):
    assert main(["build", "42", "--folder", str(folder)]) == 1
    assert "no notebook '42'" in capsys.readouterr().err
