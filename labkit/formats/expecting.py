"""What a format expects of the folder it reads, and what it says when it finds something else.

config.json and the tensors say the same things twice (bits, group size, which layers); a folder in
which they disagree was damaged or put together wrongly, and reading it anyway would give a model
that computes nonsense. Shapes and types are compared in the headers, before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from labkit.core.errors import FormatError, LabkitError, SchemeError
from labkit.core.quantized import Quantized
from labkit.core.scheme import Granularity, QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats.reading import LazyTensors

Made = TypeVar("Made")

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def integer(settings: Mapping[str, object], key: str, path: Path) -> int:
    """An integer of a quantization config.

    Raises:
        FormatError: it is missing, or something else.
    """
    value = settings.get(key)
    if type(value) is not int:
        raise FormatError(f"{key} is {value!r}", where=_config(path), remedy="Expected an integer.")
    return value


def flag(settings: Mapping[str, object], key: str, path: Path, default: bool) -> bool:
    """A yes or no of a quantization config.

    Raises:
        FormatError: it is something else.
    """
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{key} is {value!r}", where=_config(path), remedy="Expected a bool.")
    return value


def only(settings: Mapping[str, object], key: str, path: Path, allowed: Iterable[object]) -> None:
    """Refuse a setting that labkit does not know how to read; a missing one passes.

    Raises:
        FormatError: the setting is there with another value than ``allowed``.
    """
    allowed = list(allowed)
    if key in settings and settings[key] not in allowed:
        raise FormatError(
            f"{key} is {settings[key]!r}",
            where=_config(path),
            remedy=f"labkit reads {', '.join(map(repr, allowed))}.",
        )


def layer_names(tensors: LazyTensors, ending: str, path: Path) -> list[str]:
    """The modules that have a tensor of this name: "a.b" for "a.b.qweight".

    Raises:
        FormatError: there is none, though config.json says that the model is quantized.
    """
    names = [name.removesuffix(f".{ending}") for name in tensors if name.endswith(f".{ending}")]
    if not names:
        raise FormatError(
            f"no layer has a {ending!r}, though config.json says that the model is quantized",
            where=str(path),
            remedy="config.json and the weights do not belong together; fetch both again.",
        )
    return names


def require(
    tensors: LazyTensors, name: str, path: Path, shape: tuple[int, ...], dtypes: Iterable
) -> None:
    """Compare a tensor's type and shape, as its file's header has them, with what config.json says.

    Raises:
        FormatError: the tensor is missing, or of another type or shape.
    """
    dtypes = tuple(dtypes)
    wanted = f"{' or '.join(str(d).removeprefix('torch.') for d in dtypes)} {list(shape)}"
    if name not in tensors:
        raise FormatError(f"no tensor {name!r}", where=str(path), remedy=f"Expected {wanted}.")
    entry = tensors.entry(name)
    if entry.dtype not in dtypes or entry.shape != shape:
        found = f"{str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}"
        raise FormatError(
            f"tensor {name!r} is {found}; by config.json and its neighbours it is {wanted}",
            where=str(path),
            remedy="config.json and the weights do not belong together; fetch both again.",
        )


def matrix_shape(tensors: LazyTensors, name: str, path: Path) -> tuple[int, int]:
    """Rows and columns of a tensor that is a matrix, neither of them 0.

    Raises:
        FormatError: it is something else.
    """
    shape = tensors.entry(name).shape
    if len(shape) != 2 or 0 in shape:
        raise FormatError(f"tensor {name!r} has shape {list(shape)}", where=str(path))
    return shape[0], shape[1]


def groups_of(columns: int, group_size: int, layer: str, path: Path) -> int:
    """How many groups a row of ``columns`` has; a group size of -1, or beyond the row, is one.

    Raises:
        FormatError: the last group would be shorter than the others.
    """
    if group_size == -1 or group_size >= columns:
        return 1
    if group_size < 1 or columns % group_size:
        raise FormatError(
            f"group size {group_size} does not divide the {columns} inputs of layer {layer!r}",
            where=_config(path),
            remedy="config.json and the weights do not belong together; fetch both again.",
        )
    return columns // group_size


def finite(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """The tensor, if it holds neither NaN nor infinity.

    Raises:
        FormatError: it does.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise FormatError(f"tensor {name!r} holds NaN or infinity", where=str(path))
    return tensor


def uniform_scheme(layers: Mapping[str, Quantized], fmt: str) -> QuantScheme:
    """The scheme that all layers share: these formats state it once for the whole model.

    Raises:
        FormatError: no layers, layers that are not integers, or two schemes.
    """
    found: QuantScheme | None = None
    for name in layers:
        scheme = integers(layers[name], name, fmt).scheme
        if found is not None and scheme != found:
            raise FormatError(
                f"layer {name!r} is {scheme}, the ones before it {found}",
                where=fmt,
                remedy="One scheme for all layers; leave the others unquantized.",
            )
        found = scheme
    if found is None:
        raise FormatError("no quantized layers", where=fmt, remedy="Quantize the model first.")
    return found


def integers(layer: Quantized, name: str, fmt: str) -> QuantizedTensor:
    """The layer as an affine integer matrix, which is what the format holds.

    Raises:
        FormatError: it is a codebook, or floating point, or no matrix.
    """
    if not isinstance(layer, QuantizedTensor) or layer.codes.ndim != 2:
        raise FormatError(
            f"layer {name!r} is a {type(layer).__name__} of shape {tuple(layer.shape)}",
            where=fmt,
            remedy="This format holds integer matrices with scales.",
        )
    return layer


def unquantized_linears(tensors: Mapping[str, torch.Tensor], layers: Iterable[str]) -> list[str]:
    """The matrices inside of a decoder block that are not quantized, by module name.

    A module lies in a block if a number is part of its name, as in "model.layers.0.mlp.up_proj".
    """
    quantized = set(layers)
    found = []
    for name in tensors:
        module = name.removesuffix(".weight")
        inside = any(part.isdecimal() for part in module.split("."))
        if module != name and inside and module not in quantized and tensors[name].ndim == 2:
            found.append(module)
    return sorted(found)


def half_scales(layer: QuantizedTensor, name: str, fmt: str) -> torch.Tensor:
    """The scales as float16, which is what the readers of the format compute with.

    Raises:
        FormatError: a scale that float16 cannot hold: the codes were chosen for another number.
    """
    half = layer.scale.to(torch.float16)
    if not torch.equal(half.to(torch.float32), layer.scale.to(torch.float32)):
        raise FormatError(
            f"layer {name!r} has {layer.scale.dtype} scales that float16 cannot hold",
            where=fmt,
            remedy="Quantize with scale_dtype=torch.float16, so that the codes fit what is stored.",
        )
    return half


def assembled(make: Callable[..., Made], *parts: object, layer: str, path: Path) -> Made:
    """``make(*parts)``; a contradiction that the core finds is the file's fault, and says so.

    Raises:
        FormatError: the parts contradict each other.
    """
    try:
        return make(*parts)
    except LabkitError as error:
        raise FormatError(f"layer {layer!r}: {error}", where=str(path)) from error


def scheme_of(
    bits: int, symmetric: bool, granularity: Granularity, group_size: int | None, path: Path
) -> QuantScheme:
    """The scheme that a config describes; symmetric codes have the full range in all formats.

    Raises:
        FormatError: there is no such scheme.
    """
    try:
        return QuantScheme(bits, symmetric, granularity, group_size, narrow_range=not symmetric)
    except SchemeError as error:
        raise FormatError(str(error), where=_config(path)) from error


def by_group(size: int, columns: int, groups: int) -> tuple[Granularity, int | None]:
    """Granularity and group size of a layer, by the group size that config.json states (-1: none).

    A group size beyond the row is one group, a channel.
    """
    if size == -1 or size > columns:
        return "channel", None
    return "group", columns // groups


def _config(path: Path) -> str:
    return f"quantization_config of {path}"
