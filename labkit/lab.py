"""Open the course in JupyterLab: `make lab`, or `python -m labkit.lab`.

The server listens on 127.0.0.1 alone and asks nobody for news. Environment variables:

- PORT: the port; without it, the first free one from 8888. A named port that is taken is an error.
- LAB_ARGS: more arguments for JupyterLab, e.g. "--no-browser --ServerApp.log_level=INFO".
- JUPYTER_TOKEN: the token in the address; without it, a random one.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
import webbrowser
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
HOST = "127.0.0.1"
FIRST_PORT = 8888
PORTS_TO_TRY = 100
# JupyterLab has no command-line option that removes its "get notified about news?" prompt.
CONFIG = Path(__file__).parent / "jupyter"


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port(wanted: str | None) -> int:
    """The port to listen on: the one wanted, or the first free one from 8888.

    Raises SystemExit with a message if the wanted one is no port or taken, or all are taken.
    """
    if wanted:
        if not wanted.isdecimal() or not 0 < int(wanted) < 65536:
            raise SystemExit(f"PORT={wanted} is no port; choose a number from 1 to 65535.")
        if not is_free(int(wanted)):
            raise SystemExit(f"Port {wanted} is taken; name another: make lab PORT=9999")
        return int(wanted)
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY):
        if is_free(port):
            return port
    raise SystemExit(f"No free port from {FIRST_PORT} on; name one: make lab PORT=9999")


def has_browser(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a graphical browser can open here; a text browser would take over the terminal."""
    if "BROWSER" not in environment:
        if platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(environment):
            return False
        if platform != "linux" and "SSH_CONNECTION" in environment:
            return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def lab_command(root: Path, port: int, extra: Iterable[str] = ()) -> list[str]:
    """The JupyterLab command line for the folder `root`; `extra` arguments come last."""
    command = [sys.executable, "-m", "jupyterlab", str(root / FIRST_NOTEBOOK)]
    command += [f"--ServerApp.root_dir={root}", f"--ServerApp.ip={HOST}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    # The default extension manager asks PyPI what there is as soon as its panel opens.
    command += ["--ServerApp.log_level=WARN", "--LabApp.extension_manager=readonly"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]
    if not has_browser():
        command += ["--no-browser"]
    extra = list(extra)
    # Jupyter refuses an option that is given twice: what the user says replaces ours.
    given = {argument.partition("=")[0] for argument in extra}
    return [word for word in command if word.partition("=")[0] not in given] + extra


def lab_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` with a token and the course's JupyterLab configuration (no announcements)."""
    paths = [str(CONFIG), *filter(None, [environment.get("JUPYTER_CONFIG_PATH")])]
    token = environment.get("JUPYTER_TOKEN") or secrets.token_hex(16)
    return {
        **environment,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_PATH": os.pathsep.join(paths),
        # A "python3" kernel of another Python in the home directory must not come first.
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def address(port: int, token: str) -> str:
    """Where the first notebook opens."""
    return f"http://{HOST}:{port}/lab/tree/{FIRST_NOTEBOOK}?token={token}"


def main() -> None:
    """Say where the course will be, then become the JupyterLab server (stop it with Ctrl-C)."""
    port = choose_port(os.environ.get("PORT"))
    command = lab_command(ROOT, port, shlex.split(os.environ.get("LAB_ARGS", "")))
    environment = lab_environment()
    console = Console(soft_wrap=True)
    opens = "opens in your browser" if "--no-browser" not in command else "is at this address"
    console.print(f"\n[bold]The course {opens}[/bold] in a few seconds (Ctrl-C ends it):")
    console.print(f"    {address(port, environment['JUPYTER_TOKEN'])}\n", highlight=False)
    os.chdir(ROOT)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
