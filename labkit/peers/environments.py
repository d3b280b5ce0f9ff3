"""Where each real library lives: its virtual environment, and how that is made.

    make peers                                 all of them
    python -m labkit.peers                     those made here; with names, only these

They contradict each other, and the course, in what they need, so each has an environment of its own
beside `.venv`. $LABKIT_PEERS names further folders to look in, separated as in PATH.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from labkit.core.errors import PeerMissingError
from labkit.environment import create

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """One virtual environment.

    Attributes:
        folder: its name beside `.venv`.
        constraints: the file that pins every package in it.
        installs: pip's arguments, one list a step; torch, pinned, comes before all of them.
        command: what makes it.
    """

    folder: str
    constraints: str
    installs: tuple[tuple[str, ...], ...] = ()
    command: str = "make peers"


ENVIRONMENTS = {
    "card": Environment(".venv-card", "constraints-card.txt", command="make card-env"),
    "gptqmodel": Environment(
        ".venv-gptqmodel",
        "constraints-gptqmodel.txt",
        # Its set-up imports torch, so it is built where torch is, and not in isolation.
        (("setuptools", "wheel"), ("--no-build-isolation", "gptqmodel==7.6.0")),
    ),
    "llmcompressor": Environment(
        ".venv-llmcompressor",
        "constraints-llmcompressor.txt",
        (
            (
                "llmcompressor==0.14.0.1",
                "transformers==5.17.0",
                "compressed-tensors==0.19.0",
                "hqq",
                "torchao==0.18.0",
            ),
        ),
    ),
}

PEERS = {
    "auto_gptq": "card",
    "awq": "card",
    "gptqmodel": "gptqmodel",
    "llmcompressor": "llmcompressor",
    "compressed_tensors": "llmcompressor",
    "hqq": "llmcompressor",
    "torchao": "llmcompressor",
}
"""The library, by the name that it is imported under, and its environment."""


def python_of(peer: str) -> Path:
    """Return the Python of the environment that has ``peer``.

    Raises:
        PeerMissingError: the environment is not there, or was not finished.
    """
    if peer not in PEERS:
        raise PeerMissingError(f"no peer {peer!r}", remedy=f"There are {', '.join(PEERS)}.")
    environment = ENVIRONMENTS[PEERS[peer]]
    for folder in _places(environment):
        if (folder / create.STAMP).exists():
            return folder / "bin" / "python"
    raise PeerMissingError(
        f"{environment.folder} is missing or not whole",
        where=peer,
        remedy=f"Make it with `{environment.command}`.",
    )


def available(peer: str) -> bool:
    """Whether ``peer`` can be called here."""
    try:
        python_of(peer)
    except PeerMissingError:
        return False
    return True


def build(name: str) -> None:
    """Make the environment ``name``, or finish it; nothing happens if it is whole and up to date.

    Exits with a message where pip fails; run again, it goes on where it stopped.
    """
    environment = ENVIRONMENTS[name]
    constraints = ROOT / environment.constraints
    venv = ROOT / environment.folder
    stamp = venv / create.STAMP
    if stamp.exists() and stamp.stat().st_mtime >= constraints.stat().st_mtime:
        create.say(f"{environment.folder} is up to date")
        return
    python = create.make_venv(venv)
    torch = create.pinned(constraints, "torch")
    index = create.torch_index()
    if index:
        create.pip(python, "--no-deps", "--index-url", index, torch)
    for step in ((), *environment.installs):
        # torch on every line: an unpinned one would be replaced, by gigabytes of CUDA.
        create.pip(python, "-c", str(constraints), torch, *step)
    stamp.touch()
    create.say(f"{environment.folder} is ready")


def _places(environment: Environment) -> list[Path]:
    more = os.environ.get("LABKIT_PEERS", "").split(os.pathsep)
    return [Path(place) / environment.folder for place in [str(ROOT), *more] if place]
