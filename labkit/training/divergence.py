"""Notice a run that has gone wrong, and say why, before it costs the rest of its time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from labkit.core.errors import LabkitError

WINDOW = 10
# In nats. Losses below are rounding and the luck of a batch, whatever multiple they rise by.
NEGLIGIBLE = 1e-4


class DivergenceError(LabkitError, ArithmeticError):
    """Training was stopped: the loss, a gradient or a weight left the range that can be trained.

    `step` is the one at which it was seen (the first is 1), `history` the rows recorded until then.
    """

    step: int = 0
    history: Sequence[dict[str, float]] = ()


class Watch:
    """Watches a loss curve.

    Args:
        factor: how far the mean of the last `WINDOW` losses may lie above the lowest such mean,
            as a multiple of it; a lowest mean below `NEGLIGIBLE` counts as that.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.lowest = math.inf

    def add(self, step: int, loss: float, gradient: float, lr: float) -> None:
        """Take in a step's loss, gradient norm and learning rate.

        Raises:
            DivergenceError: loss or gradient is NaN or infinite, or the loss has risen too far.
        """
        for name, value in (("loss", loss), ("gradient norm", gradient)):
            if not math.isfinite(value):
                raise diverged(step, f"the {name} is {value}", lr)
        self.recent.append(loss)
        if len(self.recent) < WINDOW:
            return
        mean = sum(self.recent) / WINDOW
        self.lowest = min(self.lowest, mean)
        if mean > self.factor * max(self.lowest, NEGLIGIBLE):
            what = f"the loss rose from {self.lowest:.4g} to {mean:.4g} (means of {WINDOW} steps)"
            raise diverged(step, what, lr)


def diverged(step: int, what: str, lr: float) -> DivergenceError:
    """The error for a step."""
    error = DivergenceError(
        f"{what}; the learning rate was {lr:.3g}",
        where=f"training step {step}",
        remedy="Lower lr or scale_lr, warm up longer, or use more bits. The last checkpoint in "
        "the run's folder, if it had one, is sound.",
    )
    error.step = step
    return error
