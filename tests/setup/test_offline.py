"""Nothing reaches for the network unless a hub model or corpus is named; the guard itself works."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sitecustomize import BlockedNetwork, is_local

from labkit.data.corpora import BUNDLED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """Run Python in a new process with the guard's log of its own: (process, what was blocked)."""

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess, str]:
        log = tmp_path / "blocked.log"
        environment = os.environ | {"LABKIT_BLOCKED_LOG": str(log), "LABKIT_HOME": str(tmp_path)}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT
        )
        return done, log.read_text() if log.exists() else ""

    return run


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "", None, b"127.0.0.1"]
)
def test_local_hosts_are_allowed(host):
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["huggingface.co", "10.0.0.1", "8.8.8.8", "2001:db8::1", b"pypi.org"]
)
def test_other_hosts_are_not(host):
    assert not is_local(host)


def test_a_local_connection_works():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.getaddrinfo('huggingface.co', 443)",
        "socket.socket().connect_ex(('192.0.2.1', 80))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
        "urllib.request.urlopen('http://192.0.2.1/', timeout=1)",
    ],
)
def test_another_process_is_guarded_and_what_it_swallows_is_logged(run, attempt):
    program = (
        "import socket, urllib.request\n"
        f"try:\n    {attempt}\n"
        "except Exception as error:\n    print(type(error).__name__)"
    )
    done, blocked = run("-c", program)
    assert done.stdout.split() == [BlockedNetwork.__name__], done.stderr
    assert "by -c" in blocked


def test_the_bundled_model_and_corpora_load_offline(run):
    program = (
        "from labkit.data import load_corpus\n"
        "from labkit.data.corpora import BUNDLED\n"
        "from labkit.models import load\n"
        "print(*(name for name in BUNDLED if len(load_corpus(name).text) > 10**5))\n"
        "print(load()[0].config.model_type)"
    )
    done, blocked = run("-c", program)
    assert (done.stdout.split(), blocked) == ([*BUNDLED, "llama"], ""), done.stderr


@pytest.mark.parametrize("words", [["doctor"], ["course", "status"], ["--help"], ["--version"]])
def test_a_command_runs_offline(run, words):
    done, blocked = run("-c", "from labkit.cli import main; main()", *words)
    assert (done.returncode, blocked) == (0, ""), done.stdout + done.stderr
    assert done.stdout.strip()
