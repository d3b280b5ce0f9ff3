"""What lies beside the packages: the bundled model, and parts that only some of the work needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from labkit.environment.finding import Finding, State
from labkit.environment.packages import (
    INSTALL,
    ROOT,
    beside,
    installed_version,
    own_requirements,
)

BUNDLED_MODEL = ROOT / "data" / "reference-lm" / "model.safetensors"
FIRST_NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"


def check_model() -> Finding:
    """The model that the notebooks load: $LABKIT_MODEL, or the bundled one."""
    chosen = os.environ.get("LABKIT_MODEL")
    if chosen:
        return Finding("Model", f"{chosen} (LABKIT_MODEL)")
    if not BUNDLED_MODEL.exists():
        advice = "git checkout -- data/reference-lm, or LABKIT_MODEL=name-or-folder"
        return Finding("Model", f"{beside(BUNDLED_MODEL)} is missing", State.STOPS, advice)
    return Finding("Model", f"bundled, {BUNDLED_MODEL.stat().st_size / 1e6:.1f} MB")


def check_notebooks() -> Finding:
    """The notebooks, which an installed package without its repository does not have."""
    if not FIRST_NOTEBOOK.exists():
        advice = "git checkout -- notebooks"
        return Finding("Notebooks", f"{beside(FIRST_NOTEBOOK)} is missing", State.STOPS, advice)
    count = len(list(FIRST_NOTEBOOK.parent.glob("*.ipynb")))
    return Finding("Notebooks", f"{count} in {beside(FIRST_NOTEBOOK.parent)}")


def _extra(name: str, use: str) -> Callable[[], Finding]:
    """A check for the packages of one of labkit's extras."""

    def check() -> Finding:
        asked = own_requirements(name)
        missing = [item.name for item in asked if installed_version(item.name) is None]
        if missing:
            advice = f'{INSTALL} -e ".[{name}]"'
            return Finding(use, f"missing: {', '.join(missing)}", State.NOTE, advice)
        return Finding(use, "installed")

    return check


def _program(names: tuple[str, ...], use: str, debian: str, macos: str) -> Callable[[], Finding]:
    """A check for a program on the PATH, under any of several names."""

    def check() -> Finding:
        found = next(filter(None, map(shutil.which, names)), None)
        if found is None:
            advice = macos if sys.platform == "darwin" else debian
            return Finding(use, f"missing: {names[0]}", State.NOTE, advice)
        return Finding(use, found)

    return check


def check_card_environment() -> Finding:
    """The environment of environment.yml, in which auto-gptq and autoawq run."""
    use = "auto-gptq and autoawq"
    if installed_version("auto-gptq") and installed_version("autoawq"):
        return Finding(use, "installed here")
    if (ROOT / ".venv-card" / ".labkit-ready").exists():
        return Finding(use, ".venv-card")
    return Finding(use, "missing", State.NOTE, "make card-env (needs Python 3.11)")


OPTIONAL: tuple[Callable[[], Finding], ...] = (
    _extra("test", "Tests"),
    _program(
        ("chromium", "chromium-browser", "google-chrome"),
        "Browser tests",
        "apt-get install chromium",
        "brew install --cask chromium",
    ),
    _program(
        ("cc", "gcc", "clang"),
        "C compiler",
        "apt-get install build-essential",
        "xcode-select --install",
    ),
    _extra("hub", "Corpora of the hub"),
    check_card_environment,
)


def check_parts() -> list[Finding]:
    """What the course needs beside packages."""
    return [check_model(), check_notebooks()]


def check_optional() -> list[Finding]:
    """What only some of the work needs."""
    return [check() for check in OPTIONAL]
