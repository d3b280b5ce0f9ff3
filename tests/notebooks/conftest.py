"""A small course folder with one sample notebook, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labkit.notebooks.build import build
from labkit.notebooks.source import NOTEBOOKS, pairs

SAMPLE = Path(__file__).with_name("sample_notebook.py")
QUESTION = """
# %% [markdown] tags=["interview"]
# **Question {0}?**
#
# <details><summary>A model answer</summary>
#
# Because of {0}.
#
# </details>
"""
PROJECT = f"""# %% [markdown]
# # P9 · A project
#
# **You will be able to**
# - run a notebook that has no exercises
#
# **Time:** 5 minutes · **Before this:** [a sample](../00_sample.ipynb)

# %%
from pathlib import Path

print("runs in", Path.cwd().name)

# %% [markdown]
# ## Explain it in an interview
{"".join(map(QUESTION.format, (1, 2, 3)))}
# %% [markdown]
# ## What to read
#
# - [a sample](../00_sample.ipynb)
"""


def make_folder(folder: Path) -> Path:
    """A course folder: the sample's source, and what nbval needs beside the notebooks."""
    (folder / "source").mkdir(parents=True)
    shutil.copy(SAMPLE, folder / "source" / "00_sample.py")
    for name in ("conftest.py", "nbval_sanitize.cfg"):
        shutil.copy(NOTEBOOKS / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory) -> Path:
    """The sample, built. Do not change it: `folder` is a copy for that."""
    folder = make_folder(tmp_path_factory.mktemp("course") / "notebooks")
    list(build(pairs(folder=folder)))
    return folder


@pytest.fixture(scope="session")
def project_folder(tmp_path_factory) -> Path:
    """A course folder with the sample as a project too, that one alone built."""
    folder = make_folder(tmp_path_factory.mktemp("with_project") / "notebooks")
    (folder / "source" / "projects").mkdir()
    (folder / "source" / "projects" / "p9_sample.py").write_text(PROJECT, encoding="utf-8")
    list(build(pairs(["p9"], folder)))
    return folder


@pytest.fixture
def folder(built_folder, tmp_path) -> Path:
    """A copy of the built course folder."""
    return Path(shutil.copytree(built_folder, tmp_path / "notebooks"))


@pytest.fixture
def sample(folder):
    """The sample's source and notebook, in a folder of the test's own."""
    return pairs(["00"], folder)[0]
