"""Call a real library: tensors and settings in, tensors and results out, one subprocess a call."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from labkit.core.errors import PeerError
from labkit.peers.environments import python_of

HERE = Path(__file__).resolve().parent
_TAIL = 25


def call(
    peer: str,
    script: str,
    tensors: dict[str, torch.Tensor] | None = None,
    settings: dict[str, Any] | None = None,
    *,
    threads: int | None = None,
    timeout: float = 600.0,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Run ``labkit/peers/scripts/<script>.py`` with the Python that has ``peer``.

    The script defines ``main(tensors, settings) -> (tensors, results)`` and imports nothing of
    labkit. It runs in a temporary folder, where tensors travel as safetensors, settings and results
    as JSON.

    Args:
        peer: a key of `labkit.peers.environments.PEERS`.
        threads: OMP_NUM_THREADS of the subprocess; None leaves it as it is here.
        timeout: seconds after which the subprocess is ended.

    Raises:
        PeerMissingError: the environment is not there; says how to make it.
        PeerError: the script failed or took too long; with the end of what it printed.
    """
    python = python_of(peer).absolute()
    file = HERE / "scripts" / f"{script}.py"
    if not file.is_file():
        raise PeerError(f"no script {script!r}", where=peer, remedy=f"Expected {file.name}.")
    with tempfile.TemporaryDirectory(prefix="labkit-peer-") as folder:
        place = Path(folder)
        # safetensors refuses tensors that share memory, and views that are not contiguous.
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in (tensors or {}).items()}
        save_file(whole, place / "in.safetensors")
        (place / "in.json").write_text(json.dumps(settings or {}))
        command = [str(python), str(HERE / "runner.py"), str(file), folder]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout,
                env=_environment(threads),
                cwd=folder,  # GPTQModel writes logs to where it is called
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(
                f"{script} was ended after {timeout:g} s",
                where=peer,
                remedy="Give it a smaller problem, or a longer timeout.",
            ) from error
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL:])
            raise PeerError(f"{script} failed with status {done.returncode}:\n{tail}", where=peer)
        return load_file(place / "out.safetensors"), json.loads((place / "out.json").read_text())


def _environment(threads: int | None) -> dict[str, str]:
    """Offline, on the CPU, and without this process's own modules in the way."""
    chosen = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if threads is not None:
        chosen |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return chosen
