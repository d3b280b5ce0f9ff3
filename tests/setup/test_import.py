"""`import labkit` and the command line stay light; what labkit imports, pyproject.toml names."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "numba", "numpy", "matplotlib", "IPython", "llama_cpp"}


def loaded_by(program: str) -> set[str]:
    """The top-level modules in sys.modules after `program` ran in a fresh process."""
    ask = f"{program}\nimport json, sys\nprint(json.dumps([*sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    "program",
    ["import labkit", "import labkit.cli", "import labkit.doctor", "import labkit.lab"],
)
def test_import_brings_in_nothing_heavy(program):
    assert loaded_by(program) & HEAVY == set()


def test_help_brings_in_nothing_heavy():
    assert loaded_by("from labkit.cli import main; main(['--help'])") & HEAVY == set()


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_every_package_that_labkit_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["hub"], *extras["gpu"]]
    declared = {canonicalize_name(Requirement(line).name) for line in listed}
    # jupyterlab is made of these; their versions move together.
    declared |= {"ipykernel", "ipython", "jupyter-client", "nbclient", "nbformat"}
    # transformers is made with this one, and raises its errors.
    declared |= {"huggingface-hub"}
    providers = metadata.packages_distributions()
    strangers = {}
    # The scripts of peers run where their library is installed, and labkit is not.
    scripts = ROOT / "labkit" / "peers" / "scripts"
    for path in set((ROOT / "labkit").rglob("*.py")) - set(scripts.glob("*.py")):
        for name in imported(path) - set(sys.stdlib_module_names) - {"labkit"}:
            distributions = {canonicalize_name(item) for item in providers.get(name, [name])}
            if not distributions & declared:
                strangers[name] = str(path.relative_to(ROOT))
    assert strangers == {}
