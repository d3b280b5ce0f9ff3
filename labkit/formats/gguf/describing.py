"""What a GGUF file holds, as plain data: for `labkit gguf inspect`, in words or as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from labkit.formats.gguf.values import Kind, Value

if TYPE_CHECKING:
    from labkit.formats.gguf.layout import TensorInfo
    from labkit.formats.gguf.reader import GgufFile

SHOWN_ITEMS = 8  # of an array: a vocabulary has 10^5 of them


def describe(file: GgufFile) -> dict[str, Any]:
    """The file, its metadata, its types and its tensors.

    Returns:
        What `json.dumps` takes. `bits_per_weight` counts all bytes that store weights: scales and
        minima too, padding not. `share` is of the file's bytes. An array is its count and its
        first items.
    """
    tensors = list(file.tensors.values())
    stored = sum(info.nbytes for info in tensors)
    weights = sum(_weights(info) for info in tensors)
    return {
        "path": str(file.path),
        "nbytes": file.nbytes,
        "version": file.version,
        "alignment": file.alignment,
        "tensor_count": len(tensors),
        "weights": weights,
        "bits_per_weight": _bits(stored, weights),
        "metadata": {key: _described(value) for key, value in file.fields.items()},
        "types": _types(tensors, file.nbytes),
        "tensors": [_tensor(info, file.nbytes) for info in tensors],
    }


def _tensor(info: TensorInfo, file_bytes: int) -> dict[str, Any]:
    return {
        "name": info.name,
        "type": info.type_name,
        "shape": list(info.shape),
        "nbytes": info.nbytes,
        "offset": info.offset,
        "share": info.nbytes / file_bytes,
        "bits_per_weight": _bits(info.nbytes, _weights(info)),
    }


def _types(tensors: list[TensorInfo], file_bytes: int) -> list[dict[str, Any]]:
    """Each type's part of the file, the largest first."""
    by_type: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in tensors:
        by_type[info.type_name].append(info)
    rows = []
    for type_name, infos in by_type.items():
        nbytes, weights = sum(i.nbytes for i in infos), sum(map(_weights, infos))
        rows.append(
            {
                "type": type_name,
                "tensors": len(infos),
                "weights": weights,
                "nbytes": nbytes,
                "share": nbytes / file_bytes,
                "bits_per_weight": _bits(nbytes, weights),
            }
        )
    return sorted(rows, key=lambda row: -row["nbytes"])


def _described(value: Value) -> dict[str, Any]:
    if value.kind != Kind.ARRAY:
        return {"kind": value.kind.name.lower(), "value": _plain(value.value)}
    return {
        "kind": f"array of {Kind(value.item_kind).name.lower()}",
        "count": len(value.value),
        "first": [_plain(item) for item in value.value[:SHOWN_ITEMS]],
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _weights(info: TensorInfo) -> int:
    return math.prod(info.shape)


def _bits(nbytes: int, weights: int) -> float:
    return nbytes * 8 / weights if weights else 0.0
