"""environment.yml: the ten packages of the card, archived ones included, in one environment.

`make card-env` resolves it with pip into .venv-card. Without that, what needs it skips;
LABKIT_REQUIRE_CARD=1 makes that a failure instead.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit.environment import create, packages

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / ".venv-card"
TEN = {
    "torch": "torch",
    "transformers": "transformers",
    "auto-gptq": "auto_gptq",
    "autoawq": "awq",
    "bitsandbytes": "bitsandbytes",
    "llama-cpp-python": "llama_cpp",
    "jupyterlab": "jupyterlab",
    "ipywidgets": "ipywidgets",
    "matplotlib": "matplotlib",
    "nbval": "nbval",
}


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def wanted(conda):
    """What environment.yml asks pip for: package → requirement."""
    (pip,) = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    lines = [line for line in pip if not line.startswith("-")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


@pytest.fixture(scope="module")
def python(conda):
    """The Python of .venv-card, made from the environment.yml of now."""
    stamp = CARD / create.STAMP
    sources = [ROOT / "environment.yml", ROOT / "constraints-card.txt"]
    if stamp.exists() and all(stamp.stat().st_mtime >= path.stat().st_mtime for path in sources):
        return CARD / "bin" / "python"
    if os.environ.get("LABKIT_REQUIRE_CARD"):
        pytest.fail("no .venv-card, or an old one: make card-env")
    pytest.skip("no .venv-card, or an old one: make card-env")


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_environment_asks_for_all_ten_on_python_3_11(conda, wanted):
    assert set(TEN) <= set(wanted)
    assert "python=3.11" in conda["dependencies"]


def test_set_up_reads_the_same_lines_as_conda(conda, wanted):
    words = create.requirements(ROOT / "environment.yml")
    options = ["-c", "constraints-card.txt", "-e", ".[test]"]
    assert set(options) <= set(words)
    named = {Requirement(word).name for word in words if word not in options}
    assert set(map(canonicalize_name, named)) == set(wanted)


def test_the_tested_set_agrees_with_environment_yml(wanted):
    pins = packages.tested_set(ROOT / "constraints-card.txt")
    for name, requirement in wanted.items():
        assert requirement.specifier.contains(pins[name]), requirement


@pytest.mark.peers
def test_what_is_installed_is_what_environment_yml_says(python, wanted):
    program = (
        "import json, sys; from importlib.metadata import version\n"
        "print(json.dumps([sys.version_info[:2], {n: version(n) for n in sys.argv[1:]}]))"
    )
    pins = packages.tested_set(ROOT / "constraints-card.txt")
    running, installed = json.loads(run(python, "-c", program, *wanted).stdout)
    assert running == [3, 11]
    for name, version in installed.items():
        assert wanted[name].specifier.contains(version.partition("+")[0]), name
        assert version.partition("+")[0] == str(pins[name]), name


@pytest.mark.peers
def test_pip_finds_nothing_that_does_not_fit(python):
    checked = run(python, "-m", "pip", "check")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.peers
def test_all_ten_import_together(python):
    program = f"import {', '.join(TEN.values())}; print('all ten')"
    done = run(python, "-W", "ignore", "-c", program)
    assert done.stdout.splitlines()[-1:] == ["all ten"], done.stderr


@pytest.mark.peers
def test_quantization_in_c_is_there(python):
    """libllama loads, and the reference quantizer of ggml that the course compares with."""
    program = (
        "import ctypes, pathlib, llama_cpp\n"
        "llama_cpp.llama_backend_init()\n"
        "folder = pathlib.Path(llama_cpp.__file__).parent / 'lib'\n"
        "base = ctypes.CDLL(str(next(folder.glob('libggml-base.*'))))\n"
        "print(bool(base.ggml_quantize_chunk))"
    )
    done = run(python, "-c", program)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.peers
def test_the_bundled_model_runs_there_and_so_does_what_we_write(python, tmp_path):
    """transformers 4 reads our folders, tokenizers included."""
    from labkit.formats.tokenizer_files import save_tokenizer
    from labkit.models import load

    model, tokenizer = load("reference-lm")
    save_tokenizer(tokenizer, tmp_path)
    text = "def first(items):\n    return items[0]\n"
    program = (
        "import sys, torch\n"
        "from transformers import AutoTokenizer\n"
        "from labkit.models import load\n"
        "model, tokenizer = load('reference-lm')\n"
        "again = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer(sys.argv[2])['input_ids']\n"
        "assert again(sys.argv[2])['input_ids'] == ids\n"
        "with torch.inference_mode():\n"
        "    logits = model(input_ids=torch.tensor([ids])).logits[0, -1]\n"
        "print(ids, int(logits.argmax()))\n"
    )
    done = run(python, "-W", "ignore", "-c", program, str(tmp_path), text)
    assert done.returncode == 0, done.stderr[-3000:]
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert done.stdout.splitlines()[-1] == f"{ids} {best}"


@pytest.mark.peers
@pytest.mark.slow
def test_the_core_of_the_suite_passes_there(python):
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core")
    assert done.returncode == 0, done.stdout[-4000:]
