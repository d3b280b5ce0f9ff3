"""NaN and infinity are refused at the door, with their positions."""

from __future__ import annotations

import torch

from labkit.core.errors import NonFiniteError

_SHOWN = 5


def require_finite(x: torch.Tensor, where: str = "tensor") -> None:
    """Return if every element of ``x`` (any shape, any dtype) is finite.

    One infinity makes a range, and with it every scale, infinite; one NaN makes a whole block NaN.

    Raises:
        NonFiniteError: with how many elements are NaN or infinite, and the first positions.
    """
    if x.numel() == 0 or not x.is_floating_point():
        return
    # aminmax carries NaN and infinity through, and needs no mask of the tensor's size.
    lowest, highest = torch.aminmax(x.detach())
    if bool(torch.isfinite(lowest) & torch.isfinite(highest)):
        return
    bad = ~torch.isfinite(x.detach())
    positions = torch.nonzero(bad)[:_SHOWN]
    shown = ", ".join(
        f"{tuple(position)} = {float(x[tuple(position)])}" for position in positions.tolist()
    )
    count = int(bad.sum())
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    raise NonFiniteError(
        f"{count} of {x.numel()} elements are NaN or infinite: {shown}{more}",
        where=f"{where} of shape {tuple(x.shape)}",
        remedy="Find the layer that produced them: quantization has no code for such a value.",
    )
