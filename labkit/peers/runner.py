"""Runs inside of a peer's environment: hand a script its tensors, and keep what it returns.

    python runner.py SCRIPT FOLDER

Imports the standard library, safetensors and the script; the script imports the peer. Neither this
folder nor the script's is on the path: a script may bear the name of the library that it calls.
"""

import importlib.util
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(script: str, folder: str) -> None:
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if place != here]
    place = Path(folder)
    spec = importlib.util.spec_from_file_location("peer_script", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = json.loads((place / "in.json").read_text())
    tensors, results = module.main(load_file(place / "in.safetensors"), settings)
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, place / "out.safetensors")
    (place / "out.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
