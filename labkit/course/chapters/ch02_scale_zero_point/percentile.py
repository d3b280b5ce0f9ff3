"""Exercise 02.4: the range that clips a chosen share of the values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.observers import PercentileObserver
from labkit.course.chapters.ch02_scale_zero_point.samples import normal
from labkit.course.exercise import Exercise, Mutant, Trial


def percentile_reference(batches: list[torch.Tensor], percentile: float) -> torch.Tensor:
    """The threshold of the library's observer, after all batches."""
    observer = PercentileObserver(percentile)
    for batch in batches:
        observer.observe(batch)
    return observer.range(symmetric=True)[1]


def _streams(rng: np.random.Generator) -> Iterator[tuple[list[torch.Tensor], float]]:
    yield [torch.arange(1, 101).float()], 90.0
    yield [normal(rng, 300), 3 * normal(rng, 200)], 90.0
    yield [torch.arange(-99, 1).float(), torch.arange(11).float()], 80.0
    yield [normal(rng, 4, 50), torch.tensor([50.0])], 100.0
    yield [normal(rng, 20, 20), 5 * normal(rng, 10, 10), 0.1 * normal(rng, 30, 30)], 99.0
    for index in range(5):
        sizes = rng.integers(150, 400, 1 + index % 3)
        skew = float(rng.uniform(0.5, 1.5))
        batches = [skew + float(rng.uniform(0.5, 3)) * normal(rng, int(n)) for n in sizes]
        yield batches, float(rng.choice([75.0, 90.0, 95.0]))


def _right_share_is_clipped(trial: Trial) -> str | None:
    """`percentile` percent of all |x| lie at or below the threshold, to within one value"""
    x = torch.cat([batch.reshape(-1) for batch in trial["batches"]]).abs().sort().values.double()
    place = math.ceil(round(trial["percentile"] / 100 * x.numel(), 6)) - 1
    # One place to either side lets every way to interpolate pass, and one bin the library's.
    slack = float(x[-1]) * 2**-12
    least = float(x[max(place - 1, 0)]) - slack
    most = float(x[min(place + 1, x.numel() - 1)]) + slack
    if not least <= float(trial.got) <= most:
        below = float((x <= float(trial.got)).double().mean()) * 100
        return f"it is {below:.4g} percent, not {trial['percentile']:g}"
    return None


PERCENTILE = Exercise(
    id="02.4",
    title="Percentile observer",
    minutes=6,
    difficulty=2,
    goal="find the range that clips a chosen share of the values",
    stub='''
    def percentile_threshold(batches, percentile):
        """The t whose range [-t, t] holds `percentile` percent of all values in the tensors."""
        ...
    ''',
    solution='''
    def percentile_threshold(batches, percentile):
        """The t whose range [-t, t] holds `percentile` percent of all values in the tensors."""
        x = torch.cat([batch.reshape(-1) for batch in batches]).abs()
        count = math.ceil(percentile / 100 * x.numel())
        return x.sort().values[min(count, x.numel()) - 1]
    ''',
    reference=percentile_reference,
    answer_key=PercentileObserver,
    generate=_streams,
    bounds=(_right_share_is_clipped,),
    mutants=(
        Mutant(
            "You took the percentile of the signed values. The range [-t, t] clips on both "
            "sides, so that is nearly twice the share, or misses negative data. Take |x| first.",
            swap=(".abs()", ""),
        ),
        Mutant(
            "You took the percentile of each tail and kept the larger. That is the recipe for "
            "an asymmetric range; with [-t, t] it counts each tail on its own. Take |x| first.",
            source="""
            def percentile_threshold(batches, percentile):
                x = torch.cat([batch.reshape(-1) for batch in batches]).sort().values
                count = min(math.ceil(percentile / 100 * x.numel()), x.numel())
                return max(x[count - 1], -x[x.numel() - count])
            """,
        ),
        Mutant(
            "You averaged the percentile over batches. A mean of percentiles is no percentile of "
            "the whole: pool the values (the library keeps a histogram, so it need not store "
            "them).",
            source="""
            def percentile_threshold(batches, percentile):
                found = []
                for batch in batches:
                    x = batch.reshape(-1).abs().sort().values
                    count = min(math.ceil(percentile / 100 * x.numel()), x.numel())
                    found.append(float(x[count - 1]))
                return sum(found) / len(found)
            """,
        ),
        Mutant(
            "You kept the largest percentile of any batch. One unusual batch then sets the range "
            "for all. Pool the values of all batches.",
            source="""
            def percentile_threshold(batches, percentile):
                found = []
                for batch in batches:
                    x = batch.reshape(-1).abs().sort().values
                    count = min(math.ceil(percentile / 100 * x.numel()), x.numel())
                    found.append(float(x[count - 1]))
                return max(found)
            """,
        ),
        Mutant(
            "You looked at the last batch alone. An observer remembers all batches it has seen.",
            swap=("torch.cat([batch.reshape(-1) for batch in batches])", "batches[-1].reshape(-1)"),
        ),
        Mutant(
            "You took `percentile` percent of the largest value. It is a share of the values, not "
            "of the range: with outliers the two have nothing to do with each other.",
            source="""
            def percentile_threshold(batches, percentile):
                x = torch.cat([batch.reshape(-1) for batch in batches]).abs()
                return percentile / 100 * x.max()
            """,
        ),
        Mutant(
            "You used `percentile` as a fraction. 99.9 means 99.9 percent, 0.999 of the values.",
            swap=("percentile / 100", "percentile"),
        ),
        Mutant(
            "You kept the share that was to be clipped. percentile = 90 keeps 90 percent.",
            swap=("percentile / 100 * x.numel()", "(100 - percentile) / 100 * x.numel()"),
        ),
    ),
    hints=(
        "The range is [-t, t]. Does it matter on which side of 0 a value lies?",
        "Put the values of all batches into one vector of magnitudes, and sort it.",
        "torch.cat of the flattened batches, .abs(), then torch.quantile(x, percentile / 100).",
    ),
)
