"""Properties that several exercises share. A bound takes a Trial and returns what is wrong."""

from __future__ import annotations

import numpy as np

from labkit.course.exercise import Bound, Trial
from labkit.course.values import is_array, is_number, leaves, same, to_numpy


def matches_reference(rtol: float = 1e-5, atol: float = 0.0) -> Bound:
    """The answer equals the reference's, to `rtol` relative and `atol` absolute.

    Give `rtol=0` for codes and bytes. Prefer a property that follows from the mathematics, and
    put this one last: it says that an answer is wrong, but not why.
    """

    def check(trial: Trial) -> str | None:
        for (path, got), (_, expected) in zip(
            leaves(trial.got), leaves(trial.expected), strict=True
        ):
            if not same(got, expected, rtol, atol):
                return _difference(path, got, expected, rtol, atol)
        return None

    check.__doc__ = "the answer must equal the reference's"
    return check


def _difference(path: str, got: object, expected: object, rtol: float, atol: float) -> str:
    name = f"the answer's {path} differs" if path else "the answer differs"
    if not is_array(got) or is_number(got) or not is_array(expected):
        return f"{name} from the right one"
    a, b = to_numpy(got), to_numpy(expected)
    wrong = ~np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    first = tuple(int(index) for index in np.argwhere(wrong)[0])
    return (
        f"{name} in {int(wrong.sum())} of {wrong.size} places; the first is "
        f"{list(first)}: {a[first]:.6g}, not {b[first]:.6g}"
    )
