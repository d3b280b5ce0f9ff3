"""`python -m labkit.peers [NAME ...]`: build the environments named, or all that are made here."""

from __future__ import annotations

import os
import sys

from labkit.peers.environments import ENVIRONMENTS, ROOT, build


def main(names: list[str]) -> None:
    """Build them. Exits with a message for a name that is none of these."""
    own = [name for name, environment in ENVIRONMENTS.items() if environment.installs]
    os.chdir(ROOT)
    for name in names or own:
        if name not in own:
            sys.exit(f"no environment {name!r} to make here; there are {', '.join(own)}")
        build(name)


if __name__ == "__main__":
    main(sys.argv[1:])
