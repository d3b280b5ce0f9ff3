"""Exercise 10.3: keys by channel, values by token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.kv_rounding import round_by_channel, round_by_token

Pair = tuple[torch.Tensor, torch.Tensor]


def round_kv(keys: torch.Tensor, values: torch.Tensor, bits: int, size: int) -> Pair:
    """KIVI's axes; both float32 [tokens, dim]."""
    return round_by_channel(keys, bits, size), round_by_token(values, bits, size)


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int, int]]:
    # tokens, dim, bits, size; the first has no whole run, the second nothing behind the last run.
    sizes = [(3, 8, 2, 4), (8, 8, 2, 4), (11, 8, 3, 4), (9, 12, 4, 2)]
    sizes += [(int(rng.integers(5, 20)), 12, int(rng.integers(2, 5)), 4) for _ in range(6)]
    for tokens, dim, bits, size in sizes:
        keys = rng.standard_normal((tokens, dim)) + 8.0 * (np.arange(dim) % 3 - 1)
        values = rng.standard_normal((tokens, dim)) * rng.uniform(0.3, 3, (tokens, 1)) + 0.5
        pair = (torch.from_numpy(part.astype(np.float32)) for part in (keys, values))
        yield (*pair, bits, size)


def _the_newest_stay(trial: Trial) -> str | None:
    """keys behind the last whole run stay exact: their range is not known yet"""
    whole = len(trial["keys"]) // trial["size"] * trial["size"]
    if torch.equal(trial.got[0][whole:], trial["keys"][whole:]):
        return None
    return f"of {len(trial['keys'])} keys those from {whole} on changed"


def _few_levels(trial: Trial) -> str | None:
    """a group of a value has at most 2**bits different numbers, its ends among them"""
    groups = trial.got[1].reshape(-1, trial["size"])
    wanted = trial["values"].reshape(-1, trial["size"])
    ends = torch.stack([wanted.amin(1), wanted.amax(1)])
    found = torch.stack([groups.amin(1), groups.amax(1)])
    if torch.allclose(ends, found, rtol=1e-4, atol=1e-4):
        return None
    return "the smallest and the largest number of a group of values must come back as they are"


_DOC = '''
    def round_kv(keys, values, bits, size):
        """(keys, values) rounded to `bits` bits; both float [tokens, dim], as are the results.

        Keys: one range for each channel over a run of `size` tokens; tokens behind the last whole
        run stay as they are. Values: one range for each `size` neighbours of a token.
        A range has 2**bits levels from its minimum to its maximum.
        """'''

_ROUND = """
        def rounded(blocks, dim):
            low, high = blocks.amin(dim, keepdim=True), blocks.amax(dim, keepdim=True)
            step = (high - low) / (2**bits - 1)
            step = torch.where(step > 0, step, torch.ones_like(step))
            return torch.round((blocks - low) / step) * step + low
"""

AXES = Exercise(
    id="10.3",
    title="Keys by channel, values by token",
    minutes=15,
    difficulty=3,
    goal="round keys and values along the axes that suit them",
    stub=f"{_DOC}\n        ...\n    ",
    solution=f"""{_DOC}
{_ROUND}
        tokens, dim = keys.shape
        whole = tokens // size * size
        runs = keys[:whole].reshape(whole // size, size, dim)
        old = rounded(runs, 1).reshape(whole, dim)
        groups = values.reshape(tokens, dim // size, size)
        return torch.cat([old, keys[whole:]]), rounded(groups, 2).reshape(tokens, dim)
    """,
    reference=round_kv,
    answer_key=round_by_channel,
    generate=_cases,
    bounds=(_the_newest_stay, _few_levels, matches_reference(rtol=1e-4, atol=1e-4)),
    mutants=(
        Mutant(
            "You rounded the keys by token. A channel that is loud in every token then widens "
            "every range; by channel it widens its own alone.",
            swap=(
                "old = rounded(runs, 1).reshape(whole, dim)",
                "old = rounded(keys[:whole].reshape(whole, dim // size, size), 2)"
                ".reshape(whole, dim)",
            ),
        ),
        Mutant(
            "You rounded the values by channel. Values have no loud channels, and a token's range "
            "is known at once; by channel the newest must wait.",
            swap=(
                "rounded(groups, 2).reshape(tokens, dim)",
                "torch.cat([rounded(values[:whole].reshape(-1, size, dim), 1).reshape(whole, dim), "
                "values[whole:]])",
            ),
        ),
        Mutant(
            "You rounded the newest keys too. Their run is not full: the next token may widen its "
            "range, and then codes that are written would have to change.",
            swap=(
                "torch.cat([old, keys[whole:]])",
                "torch.cat([old] + [rounded(keys[None, whole:], 1)[0]] * (whole < tokens))",
            ),
        ),
        Mutant(
            "One range for a channel over all tokens: then every new token may change the range of "
            "all that are stored. Cut the tokens into runs.",
            swap=(
                "runs = keys[:whole].reshape(whole // size, size, dim)",
                "runs = keys[:whole].reshape(min(1, whole), whole, dim)",
            ),
        ),
        Mutant(
            "One range for a whole token of values; `size` neighbours share one.",
            swap=("values.reshape(tokens, dim // size, size)", "values.reshape(tokens, 1, dim)"),
        ),
        Mutant(
            "2**bits levels have 2**bits - 1 steps between them.",
            swap=("(2**bits - 1)", "(2**bits)"),
        ),
        Mutant(
            "You let every range reach to 0. A loud key channel may lie between 20 and 22: give "
            "its levels to that, and keep the minimum.",
            swap=(
                "blocks.amax(dim, keepdim=True)\n",
                "blocks.amax(dim, keepdim=True)\n"
                "        low, high = low.clamp(max=0), high.clamp(min=0)\n",
            ),
        ),
        Mutant(
            "You rounded down. torch.round goes to the nearest level and halves the error.",
            swap=("torch.round((blocks - low) / step)", "torch.floor((blocks - low) / step)"),
        ),
        Mutant(
            "The minimum is missing when you go back: codes count steps from it, not from 0.",
            swap=("* step + low", "* step"),
        ),
    ),
    hints=(
        "Reshape so that what shares a range lies along one axis, then reduce over that axis.",
        "Keys: whole = tokens // size * size, then [whole // size, size, dim], ranges over axis 1. "
        "Values: [tokens, dim // size, size], ranges over axis 2.",
        "step = (max - min) / (2**bits - 1); round((x - min) / step) * step + min; "
        "torch.cat([rounded keys, keys[whole:]]).",
    ),
)
