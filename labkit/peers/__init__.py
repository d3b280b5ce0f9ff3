"""The real libraries, each in its own environment, called as a subprocess."""

from labkit.peers.call import call
from labkit.peers.environments import available

__all__ = ["available", "call"]
