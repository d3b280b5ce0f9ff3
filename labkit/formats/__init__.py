"""On-disk formats of quantized models: one file a format, each a pair `save` and `load`.

save(checkpoint, path, **settings)      writes a folder that the format's own readers load
load(path) -> Checkpoint                reads it back, and what the real libraries wrote
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from labkit.core.errors import FormatError
from labkit.formats.checkpoint import Checkpoint, quantization_of
from labkit.formats.inputs import InputQuantization
from labkit.formats.reading import read_json

__all__ = ["FORMATS", "Checkpoint", "InputQuantization", "detect", "load"]

# quant_method in config.json -> the module that reads and writes it.
FORMATS = {
    "gptq": "labkit.formats.gptq",
    "awq": "labkit.formats.awq",
    "compressed-tensors": "labkit.formats.compressed_tensors",
    "bitsandbytes": "labkit.formats.bitsandbytes",
}


def detect(path: Path | str) -> str | None:
    """The format of a model folder: a key of `FORMATS`, or None where nothing is quantized.

    Raises:
        FormatError: no readable config.json, or a format that labkit does not know.
    """
    path = Path(path)
    quantization = quantization_of(path, read_json(path / "config.json"))
    if not quantization:
        return None
    name = quantization.get("quant_method")
    if not isinstance(name, str) or name not in FORMATS:
        raise FormatError(
            f"quant_method {name!r}",
            where=str(path / "config.json"),
            remedy=f"labkit reads {', '.join(FORMATS)}.",
        )
    return name


def module_of(name: str) -> ModuleType:
    """The module of a format, imported when it is wanted."""
    return import_module(FORMATS[name])


def load(path: Path | str) -> Checkpoint:
    """Read a quantized model's folder, whichever of `FORMATS` it is in.

    Raises:
        FormatError: it is in none of them, damaged, hostile, or contradicts itself.
    """
    name = detect(path)
    if name is None:
        raise FormatError(
            "nothing in it is quantized", where=str(path), remedy="Use labkit.models.load."
        )
    return module_of(name).load(path)
