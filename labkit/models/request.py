"""What the driver is asked for: checked before the work begins, and written down for a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from labkit.core.errors import CalibrationError, ModelError
from labkit.data.calibration import check_vocabulary
from labkit.models.methods.protocol import BlockMethod
from labkit.models.sources import FolderSource, ModuleSource


def kept_linears(prefix: str, linears: list[list[str]], keep: Sequence[str]) -> list[set[str]]:
    """For each block, the linears that a pattern of `keep` names.

    Args:
        prefix: of the blocks' names.
        linears: relative names, block by block.

    Raises ModelError for a pattern that names none.
    """
    kept: list[set[str]] = [set() for _ in linears]
    for pattern in keep:
        hits = [
            (index, name)
            for index, names in enumerate(linears)
            for name in names
            if fnmatchcase(f"{prefix}.{index}.{name}", pattern)
        ]
        if not hits:
            raise ModelError(
                f"no layer is named {pattern!r}",
                where="keep",
                remedy=f"Layers have names such as {prefix}.0.{linears[0][0]}.",
            )
        for index, name in hits:
            kept[index].add(name)
    return kept


def checked_ids(
    source: ModuleSource | FolderSource, method: BlockMethod, calibration: Tensor | None
) -> Tensor | None:
    """The token ids on the model's device; None for a method that needs none.

    Raises CalibrationError: they are missing, or cannot enter the model.
    """
    if not method.needs_inputs:
        return None
    if calibration is None:
        raise CalibrationError(
            f"{method.name} needs calibration text",
            remedy="Make it with labkit.data.calibration.calibration_set.",
        )
    check_vocabulary(calibration, source.model)
    device = torch.device("cpu")
    if isinstance(source, ModuleSource):
        device = next(source.model.parameters()).device
    return calibration.to(device)


def asked_for(
    source: ModuleSource | FolderSource,
    method: BlockMethod,
    ids: Tensor | None,
    batch_size: int,
    keep: Sequence[str],
) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    text = None
    if ids is not None:
        text = hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()
    return {
        "model": source.fingerprint(),
        "settings": method.settings(),
        "calibration": {"sha256": text, "shape": None if ids is None else list(ids.shape)},
        "batch_size": batch_size,
        "keep": sorted(keep),
        # Another version may round differently; half a model of each would be neither's.
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
    }
