"""Making an environment: what is installed from where, and what happens when a step fails."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import time

import psutil
import pytest

from labkit.environment import create

CONSTRAINTS = create.ROOT / "constraints.txt"


def test_pins_are_found_however_the_name_is_spelled():
    pin = create.pinned(CONSTRAINTS, "llama-cpp-python")
    assert re.fullmatch(r"llama_cpp_python==[\d.]+", pin)
    assert create.pinned(CONSTRAINTS, "Llama.Cpp_Python") == pin


def test_a_package_without_a_pin_is_an_error():
    with pytest.raises(SystemExit, match=r"constraints.txt does not pin nothing-at-all"):
        create.pinned(CONSTRAINTS, "nothing-at-all")


def test_the_pip_lines_of_a_conda_file_are_read(tmp_path):
    conda = tmp_path / "environment.yml"
    conda.write_text("dependencies:\n  - python=3.11\n  - pip:\n      - -c a.txt\n      - b==1\n")
    assert create.requirements(conda) == ["-c", "a.txt", "b==1"]
    assert create.requirements(None) == ["-e", ".[test]"]


def test_the_slow_build_is_left_out_of_the_first_round():
    words = create.without("llama-cpp-python", ["-e", ".[test]", "peft==0.12.0"])
    assert "peft==0.12.0" in words
    assert any(word.startswith("pytest") for word in words)
    assert any(word.startswith("torch") for word in words)
    assert not any(word.startswith(("llama", "-e", ".")) for word in words)


@pytest.fixture
def linux_without_gpu(monkeypatch):
    monkeypatch.setattr(create.sys, "platform", "linux")
    monkeypatch.setattr(create.shutil, "which", lambda name: None)
    monkeypatch.delenv("TORCH_INDEX", raising=False)


def test_the_cpu_index_is_used_where_it_answers(monkeypatch, linux_without_gpu):
    monkeypatch.setattr(create.urllib.request, "urlopen", lambda url, timeout: io.BytesIO())
    assert create.torch_index() == create.CPU_INDEX


def test_pips_own_index_is_used_where_the_cpu_index_does_not_answer(
    monkeypatch, linux_without_gpu, capsys
):
    def urlopen(url, timeout):
        assert timeout <= 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(create.urllib.request, "urlopen", urlopen)
    assert create.torch_index() is None
    assert "does not answer (timed out)" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["gpu", "macos", "empty", "named"])
def test_where_the_cpu_index_is_not_asked(monkeypatch, linux_without_gpu, change):
    monkeypatch.setattr(create.urllib.request, "urlopen", lambda url, timeout: pytest.fail(url))
    if change == "gpu":
        monkeypatch.setattr(create.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    if change == "macos":
        monkeypatch.setattr(create.sys, "platform", "darwin")
    if change == "empty":
        monkeypatch.setenv("TORCH_INDEX", "")
    if change == "named":
        monkeypatch.setenv("TORCH_INDEX", "https://example.org/cu130")
    assert create.torch_index() == ("https://example.org/cu130" if change == "named" else None)


def build_that(tmp_path, script):
    """A Build whose pip is the shell script `script`."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return create.Build(python, tmp_path, "llama-cpp-python==0")


def test_a_build_shows_its_last_step(tmp_path):
    build = build_that(tmp_path, "echo '  [1/83] cc a.c'; echo '  [2/83] cc b.c'")
    build.wait()
    assert build.progress() == "[2/83]"


def test_the_steps_of_make_are_understood_too(tmp_path):
    build = build_that(tmp_path, "echo '[ 50%] Building'")
    build.wait()
    assert build.progress() == "[ 50%]"


def test_a_failed_build_ends_with_its_log_and_the_remedy(tmp_path):
    build = build_that(tmp_path, "echo 'CMake Error: no compiler'; exit 1")
    with pytest.raises(SystemExit, match=r"(?s)no compiler.*did not build.*build-essential"):
        build.wait()


def test_ending_a_build_ends_its_children(tmp_path):
    child = tmp_path / "child"
    build = build_that(tmp_path, f"sleep 600 & echo $! > '{child}'; wait")
    while not (child.exists() and child.read_text().strip()):
        assert build.process.poll() is None, build.log.read_text()
        time.sleep(0.05)
    started = psutil.Process(int(child.read_text()))
    build.end()
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, started
            time.sleep(0.05)


def test_the_flags_of_the_build_join_the_users_own(monkeypatch):
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    flags = create.Build.trimmed()["CMAKE_ARGS"]
    assert flags.endswith("-DGGML_CUDA=ON")
    assert "-DLLAVA_BUILD=OFF" in flags


def test_a_half_made_environment_is_made_again(tmp_path):
    half = tmp_path / "venv"
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").touch(mode=0o755)  # killed before it was whole
    (half / "left-over").touch()
    python = create.make_venv(half)
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    assert not (half / "left-over").exists()
    (half / "kept").touch()
    assert create.make_venv(half) == python
    assert (half / "kept").exists()


def make(*words: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=create.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("version, runs", [("3.10", False), ("3.11", True)])
def test_an_old_python_is_named_and_refused(tmp_path, version, runs):
    python = tmp_path / "python-of-some-age"
    code = "0" if runs else "1"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {code}\necho made with "$@"\n')
    python.chmod(0o755)
    done = make("setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    if runs:
        assert "made with labkit/environment/create.py" in done.stdout
    else:
        assert done.returncode != 0
        assert "needs Python 3.11 or newer; found: " in done.stdout
        assert "make lab PYTHON=" in done.stdout


def test_whatever_make_starts_keeps_what_it_compiles(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = make("--eval", "kept: ; @echo [$$PYTHONDONTWRITEBYTECODE]", "kept")
    assert done.stdout == "[]\n", done.stderr


def test_both_commands_make_the_environment_first():
    for target in ("lab", "test"):
        planned = make("--dry-run", target, "VENV=no-such-venv").stdout
        steps = planned.splitlines()
        made = next(i for i, line in enumerate(steps) if "environment/create.py" in line)
        used = next(i for i, line in enumerate(steps) if line.startswith("no-such-venv/bin/python"))
        assert made < used
