"""What needs a real library skips where it has no environment; LABKIT_REQUIRE_PEERS=1 fails."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from labkit.core.errors import PeerMissingError
from labkit.peers.environments import python_of


@pytest.fixture(scope="session")
def need_peer() -> Callable[[str], None]:
    """`need_peer("auto_gptq")` skips, or fails, where that library has no environment here."""

    def need(peer: str) -> None:
        try:
            python_of(peer)
        except PeerMissingError as error:
            if os.environ.get("LABKIT_REQUIRE_PEERS"):
                pytest.fail(str(error))
            pytest.skip(str(error))

    return need
