"""`make lab`: port, browser, and the JupyterLab command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from labkit import lab


def test_a_named_port_is_taken_as_it_is():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert lab.choose_port(str(port)) == port


def test_a_named_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} is taken"):
            lab.choose_port(str(port))


@pytest.mark.parametrize("wanted", ["0", "65536", "-1", "http", "8888x"])
def test_a_port_that_is_none_is_an_error(wanted):
    with pytest.raises(SystemExit, match="is no port"):
        lab.choose_port(wanted)


@pytest.mark.parametrize("unnamed", [None, ""])
def test_without_a_name_the_first_free_port_is_taken(monkeypatch, unnamed):
    monkeypatch.setattr(lab, "is_free", lambda port: port >= 8890)
    assert lab.choose_port(unnamed) == 8890
    monkeypatch.setattr(lab, "is_free", lambda port: False)
    with pytest.raises(SystemExit, match="No free port"):
        lab.choose_port(unnamed)


@pytest.mark.parametrize(
    "environment, platform, expected",
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"BROWSER": "firefox"}, "linux", True),
        ({}, "darwin", True),
        ({"SSH_CONNECTION": "1 2 3 4"}, "darwin", False),
    ],
)
def test_a_browser_needs_a_screen(monkeypatch, environment, platform, expected):
    monkeypatch.setattr(lab.webbrowser, "get", lambda: object())
    assert lab.has_browser(environment, platform) is expected


def test_no_browser_is_found_where_python_finds_none(monkeypatch):
    def get():
        raise lab.webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(lab.webbrowser, "get", get)
    assert not lab.has_browser({"DISPLAY": ":0"}, "linux")


def test_what_the_user_says_replaces_ours(tmp_path):
    command = lab.lab_command(tmp_path, 9999, ["--ServerApp.log_level=DEBUG"])
    assert [word for word in command if "log_level" in word] == ["--ServerApp.log_level=DEBUG"]
    assert "--ServerApp.port=9999" in command
    assert "--ServerApp.ip=127.0.0.1" in command


def test_the_token_and_a_configuration_of_the_users_own_are_kept():
    environment = lab.lab_environment({"JUPYTER_TOKEN": "mine", "JUPYTER_CONFIG_PATH": "/etc/mine"})
    assert environment["JUPYTER_TOKEN"] == "mine"
    assert environment["JUPYTER_CONFIG_PATH"] == f"{lab.CONFIG}{os.pathsep}/etc/mine"
    assert lab.lab_environment({})["JUPYTER_TOKEN"] != lab.lab_environment({})["JUPYTER_TOKEN"]


@pytest.fixture
def served(tmp_path):
    """The address of `python -m labkit.lab` over an empty course, and what it has printed."""
    port = lab.choose_port(None)
    empty = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    notebook = tmp_path / lab.FIRST_NOTEBOOK
    notebook.parent.mkdir()
    notebook.write_text(json.dumps(empty))
    program = (
        f"import pathlib, labkit.lab as lab\nlab.ROOT = pathlib.Path({str(tmp_path)!r})\nlab.main()"
    )
    settings = {"PORT": str(port), "LAB_ARGS": "--no-browser", "JUPYTER_TOKEN": "a-token"}
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | settings | folders,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield f"http://127.0.0.1:{port}", log
    server.terminate()
    server.wait(60)


def fetch(address: str, log, seconds: int = 120) -> str:
    """The page at `address`, once the server is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as page:
                return page.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                pytest.fail(f"no answer:\n{log.read_text()}")
            time.sleep(0.5)


def test_jupyterlab_comes_up_at_the_printed_address_and_asks_for_no_news(served):
    address, log = served
    page = fetch(f"{address}/lab?token=a-token", log)
    assert '"disabledExtensions": ["@jupyterlab/apputils-extension:announcements"]' in page
    assert f"{address}/lab/tree/notebooks/00_start_here.ipynb?token=a-token" in log.read_text()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/api/contents", timeout=10)
