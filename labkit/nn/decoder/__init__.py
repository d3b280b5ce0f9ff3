"""A Llama's forward pass as one compiled function over packed weights."""

from pathlib import Path

from labkit.core.compiled import drop_stale

_LABKIT = Path(__file__).parents[2]
# Functions of these folders are compiled into those of this one.
drop_stale(Path(__file__).parent, _LABKIT / "kernels" / "cpu", _LABKIT / "quantize")
