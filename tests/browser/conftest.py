"""JupyterLab as `make lab` starts it, and a headless Chromium that opens it.

What is missing skips these tests by name; LABKIT_REQUIRE_BROWSER=1 makes that a failure instead.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.lab import lab_command, lab_environment
from labkit.notebooks.running import fresh_learner
from labkit.notebooks.source import NOTEBOOKS

from .lab_page import LabPage

SECONDS_TO_START = 180
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TOKEN = "browser-test"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def missing(what: str) -> None:
    """Skip, or fail where the browser tests are required."""
    if os.environ.get("LABKIT_REQUIRE_BROWSER"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium():
    """A running headless Chromium: Debian's, or whatever `chromium` is on the path."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("playwright is not installed: pip install playwright")
    executable = os.environ.get("LABKIT_CHROMIUM") or shutil.which("chromium")
    if executable is None:
        missing("no chromium on the path: apt-get install chromium")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=executable, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab_root(tmp_path_factory) -> Path:
    """A copy of the notebooks, so that nothing a test types reaches the real ones."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    return root


@pytest.fixture(scope="session")
def lab(lab_root, tmp_path_factory) -> Iterator[str]:
    """Address of a JupyterLab over the copy; it is stopped at the end."""
    state = tmp_path_factory.mktemp("state")
    port, log = free_port(), state / "lab.log"
    with fresh_learner() as environment, log.open("w") as output:
        environment = lab_environment(environment) | {
            "JUPYTER_TOKEN": TOKEN,
            "JUPYTER_CONFIG_DIR": str(state / "config"),
            "JUPYTER_DATA_DIR": str(state / "data"),
            "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
        }
        server = subprocess.Popen(
            lab_command(lab_root, port, ["--no-browser"]),
            cwd=lab_root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_up(server, address, log)
            yield address
        finally:
            stop(server)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(server: subprocess.Popen, address: str, log: Path) -> None:
    """Until the server answers; fails with its log if it ends or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")


def stop(server: subprocess.Popen) -> None:
    """Stop the server and, through it, its kernels."""
    server.terminate()
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@pytest.fixture
def notebook_page(chromium, lab, lab_root):
    """A JupyterLab tab of a learner's window size."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    yield LabPage(context.new_page(), lab, TOKEN, lab_root)
    context.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """Where pictures of the tests go: LABKIT_SCREENSHOTS, or a temporary folder."""
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
