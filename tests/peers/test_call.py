"""How peers are called: exchange, failures, and what happens without an environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from labkit.core.errors import PeerError, PeerMissingError
from labkit.environment.create import STAMP
from labkit.peers import __main__ as command
from labkit.peers import available, call, environments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own_python(tmp_path, monkeypatch):
    """An environment named .venv-card whose Python is the one that runs the tests."""
    folder = tmp_path / "places" / ".venv-card"
    (folder / "bin").mkdir(parents=True)
    (folder / STAMP).touch()
    # Not a link: a virtual environment finds itself by the path that it is called by.
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(environments, "ROOT", tmp_path / "nowhere")
    monkeypatch.setenv("LABKIT_PEERS", str(folder.parent))
    return folder


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes a peer's script and returns its name."""
    scripts = tmp_path / "here" / "scripts"
    scripts.mkdir(parents=True)
    (tmp_path / "here" / "runner.py").write_text((ROOT / "labkit/peers/runner.py").read_text())
    monkeypatch.setattr(sys.modules["labkit.peers.call"], "HERE", tmp_path / "here")

    def write(body: str) -> str:
        (scripts / "torch.py").write_text(body)
        return "torch"

    return write


def test_tensors_and_settings_come_back(own_python, script, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    # The script bears the name of the library that it imports, and some of those are talkative.
    name = script(
        "import os, sys, torch\n"
        "print('Failed to load what this machine does not have', file=sys.stderr)\n"
        "def main(tensors, settings):\n"
        "    double = {name: tensor.T * 2 for name, tensor in tensors.items()}\n"
        "    settings['keeps'] = not sys.dont_write_bytecode\n"
        "    return double, {'threads': os.environ['OMP_NUM_THREADS'], **settings}\n"
    )
    x = torch.arange(6.0).reshape(2, 3)
    found, results = call("auto_gptq", name, {"x": x.T, "same": x.T}, {"bits": 4}, threads=1)
    assert torch.equal(found["x"], x * 2) and torch.equal(found["same"], x * 2)
    # A library's modules are compiled once, not at every call.
    assert results == {"threads": "1", "keeps": True, "bits": 4}


def test_what_a_library_writes_beside_itself_goes_with_the_call(
    own_python, script, tmp_path, monkeypatch
):
    name = script(
        "from pathlib import Path\n"
        "def main(tensors, settings):\n"
        "    Path('logs').mkdir()\n"
        "    return {}, {}\n"
    )
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("LABKIT_PEERS", "../places")  # a path from here, not from there
    call("auto_gptq", name)
    assert list(here.iterdir()) == []


def test_a_script_that_fails_shows_what_it_printed(own_python, script):
    name = script("def main(tensors, settings):\n    raise RuntimeError('its own words')\n")
    with pytest.raises(PeerError, match="its own words"):
        call("auto_gptq", name)
    with pytest.raises(PeerError, match="no script 'other'"):
        call("auto_gptq", "other")


def test_a_script_that_hangs_is_ended(own_python, script):
    name = script("import time\ntime.sleep(600)\n")
    with pytest.raises(PeerError, match=r"ended after 3 s"):
        call("auto_gptq", name, timeout=3)


def test_a_missing_environment_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.delenv("LABKIT_PEERS", raising=False)
    assert not available("gptqmodel")
    with pytest.raises(PeerMissingError, match=r"\.venv-gptqmodel .*`make peers`"):
        call("gptqmodel", "gptqmodel_layer")
    with pytest.raises(PeerMissingError, match="make card-env"):
        environments.python_of("awq")
    with pytest.raises(PeerMissingError, match="no peer 'nobody'"):
        environments.python_of("nobody")
    # One that a killed build left behind has no stamp.
    (tmp_path / ".venv-gptqmodel" / "bin").mkdir(parents=True)
    assert not available("gptqmodel")


def test_every_environment_pins_torch_and_what_it_asks_for():
    from labkit.environment.create import pinned

    for environment in environments.ENVIRONMENTS.values():
        constraints = ROOT / environment.constraints
        assert pinned(constraints, "torch") == "torch==2.13.0"
        for step in environment.installs:
            for word in step:
                if "==" in word:
                    assert pinned(constraints, word.partition("==")[0]).lower() == word
    assert set(environments.PEERS.values()) == set(environments.ENVIRONMENTS)


def test_unknown_environments_are_refused():
    with pytest.raises(SystemExit, match="gptqmodel, llmcompressor"):
        command.main(["card"])


def test_scripts_need_nothing_of_labkit():
    scripts = sorted((ROOT / "labkit/peers/scripts").glob("*.py"))
    assert scripts
    for path in [*scripts, ROOT / "labkit/peers/runner.py"]:
        text = path.read_text()
        assert "import labkit" not in text and "from labkit" not in text
    for path in scripts:
        assert "\ndef main(tensors, settings):" in path.read_text(), path.name
