"""Installed packages against the ranges of pyproject.toml and the tested set.

Reads metadata alone: torch need not be imported, or be there, to be reported on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from labkit.environment.finding import Finding, State

ROOT = Path(__file__).resolve().parents[2]


def beside(path: Path) -> str:
    """`path` as one would type it in the repository; absolute if it lies elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


INSTALL = f"{beside(Path(sys.executable))} -m pip install"


def installed_version(package: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_requirements(extra: str | None = None) -> list[Requirement]:
    """What labkit's metadata asks for: its dependencies, or those that `extra` adds."""
    listed = map(Requirement, metadata.requires("labkit") or [])
    environment = {"extra": extra or ""}
    return [
        item
        for item in listed
        if (item.marker is None) == (extra is None)
        and (item.marker is None or item.marker.evaluate(environment))
    ]


def constraints_file() -> Path:
    """The tested set of this environment: environment.yml's where auto-gptq is installed."""
    card = installed_version("auto-gptq") is not None
    return ROOT / ("constraints-card.txt" if card else "constraints.txt")


def tested_set(path: Path) -> dict[str, Version]:
    """Canonical name → version, from a file of "name==version" lines."""
    lines = path.read_text().splitlines() if path.exists() else []
    pins = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def check_package(requirement: Requirement, tested: dict[str, Version]) -> Finding:
    """One required package: there, within its range, and the version that was tested?"""
    name = requirement.name
    version = installed_version(name)
    if version is None:
        wanted = f'"{name}{requirement.specifier}"'
        constraints = f"-c {beside(constraints_file())} " if tested else ""
        return Finding(name, "missing", State.STOPS, f"{INSTALL} {constraints}{wanted}")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            name, version, State.STOPS, f'{INSTALL} "{name}{requirement.specifier}" (its range)'
        )
    pin = tested.get(canonicalize_name(name))
    # "2.13.0+cpu" is the tested 2.13.0, built for another device.
    if pin is not None and Version(version).public != pin.public:
        return Finding(name, version, State.NOTE, f"tested with {pin}")
    return Finding(name, version)


def check_packages(requirements: Iterable[Requirement] | None = None) -> list[Finding]:
    """Every package that the course needs, in the order of pyproject.toml."""
    tested = tested_set(constraints_file())
    chosen = own_requirements() if requirements is None else requirements
    return [check_package(requirement, tested) for requirement in chosen]
