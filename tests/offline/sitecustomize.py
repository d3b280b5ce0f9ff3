"""Python imports this at start-up if tests/offline is on PYTHONPATH: no socket leaves home.

tests/conftest.py puts it there for every process that the tests start (kernels, servers, the
`labkit` command), and imports it for its own. An attempt raises BlockedNetwork, which is no
OSError: a library that shrugs off a failed connection does not hide it. For those that catch
everything, the attempt is also written to $LABKIT_BLOCKED_LOG, and the test run fails at its end.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import traceback

LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}


class BlockedNetwork(RuntimeError):
    """Something wanted to talk to another machine."""


def is_local(host: object) -> bool:
    """Whether `host` is this machine's loopback; None and "" mean any interface of it."""
    if host is None:
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(host: object) -> None:
    """Raise BlockedNetwork, and leave a line in the log, unless `host` is local."""
    if is_local(host):
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "no test")
    said = f"{host!r} by {' '.join(sys.argv[:3])} in {test}"
    log = os.environ.get("LABKIT_BLOCKED_LOG")
    if log:
        with open(log, "a") as lines:
            lines.write(said + "\n" + "".join(traceback.format_stack(limit=30)) + "\n")
    raise BlockedNetwork(f"tests are offline, but {said} was asked for")


def guard_connections() -> None:
    """Wrap what opens connections, sends datagrams and asks for addresses."""
    for name in ("connect", "connect_ex", "sendto"):
        original = getattr(socket.socket, name)

        def guarded(self, *arguments, _original=original):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(arguments[-1][0])  # the address is (host, port, ...) and comes last
            return _original(self, *arguments)

        setattr(socket.socket, name, guarded)

    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        refuse(host)
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


if not getattr(socket, "labkit_guarded", False):
    guard_connections()
    socket.labkit_guarded = True
