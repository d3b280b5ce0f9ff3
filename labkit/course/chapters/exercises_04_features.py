"""Exercise 04.1: which features are loud all over a model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.llm_int8 import outlier_features


def _telling(rng: np.random.Generator) -> torch.Tensor:
    """8 layers, 20 tokens, 9 features, each of which one misconception gets wrong."""
    hidden = torch.from_numpy(rng.uniform(-2, 2, (8, 20, 9)).astype(np.float32))
    hidden[:, :, 0] = -9.0  # loud below zero alone
    hidden[:1, :, 2] = 60.0  # one layer alone: an eighth
    hidden[:, 5, 3] = 60.0  # one token alone
    hidden[:3, :8, 4] = 7.0  # three layers, 8 of 20 tokens: 0.15 of all layers and tokens
    hidden[2:4, :5, 6] = 6.0  # exactly the threshold, exactly both shares
    hidden[:, :, 7] = 2.5  # loud on average, never loud
    hidden[:4, :5, 8] = 30.0
    return hidden


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, float, float, float]]:
    for _ in range(3):
        yield _telling(rng), 6.0, 0.25, 0.25
    yield _telling(rng), 6.0, 0.5, 0.25
    yield torch.ones(2, 3, 4), 6.0, 0.25, 0.25
    for size in (4, 6, 9, 12):
        hidden = torch.from_numpy(rng.standard_normal((size, size, size)).astype(np.float32))
        loud = rng.choice(size, 2, replace=False)
        hidden[:, :, loud[0]] *= 20.0
        hidden[: size // 2, :, loud[1]] -= 15.0
        yield hidden, 6.0, 0.25, 0.25


def _ascending(trial: Trial) -> str | None:
    """each feature once, in ascending order"""
    got = trial.got
    if got.ndim != 1:
        return f"the result has {got.ndim} axes: return the indices in one"
    return None if bool((got[1:] > got[:-1]).all()) else f"the result is {got.tolist()}"


def _others_do_not_matter(trial: Trial) -> str | None:
    """a silent feature is never an outlier"""
    silent = trial["hidden"].clone()
    silent[..., 0] = 0.0
    rest = trial.call(silent, trial["threshold"], trial["layer_share"], trial["token_share"])
    return "feature 0 is all zeros and is still in the result" if 0 in rest.tolist() else None


OUTLIER_FEATURES = Exercise(
    id="04.1",
    title="Find the outlier features",
    minutes=10,
    difficulty=2,
    goal="find the features that are loud in many layers and tokens",
    stub='''
    def outlier_features(hidden, threshold, layer_share, token_share):
        """Indices of the features of `hidden` [layers, tokens, features] that are outliers."""
        ...
    ''',
    solution='''
    def outlier_features(hidden, threshold, layer_share, token_share):
        """Indices of the features of `hidden` [layers, tokens, features] that are outliers."""
        loud = (hidden.abs() >= threshold).double()
        in_layer = (loud.mean(dim=1) >= token_share).double()
        return torch.nonzero(in_layer.mean(dim=0) >= layer_share).flatten()
    ''',
    reference=outlier_features,
    answer_key=outlier_features,
    generate=_cases,
    bounds=(_ascending, _others_do_not_matter, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You compared the value, not its size: a feature that is loud below zero gets lost. "
            "Take abs() first.",
            swap=("hidden.abs() >= threshold", "hidden >= threshold"),
        ),
        Mutant(
            "You counted layers and tokens together. A feature has to be loud in enough tokens "
            "*of a layer*, and in enough layers: two shares, one after the other.",
            swap=(
                (
                    "in_layer = (loud.mean(dim=1) >= token_share).double()",
                    "in_layer = loud.mean(dim=1)",
                ),
                ("in_layer.mean(dim=0) >= layer_share", "in_layer.mean(dim=0) >= token_share"),
            ),
        ),
        Mutant(
            "One loud token is enough for your answer. An outlier feature is loud in at least "
            "token_share of the tokens; what a single token does is another matter.",
            swap=("(loud.mean(dim=1) >= token_share).double()", "loud.amax(dim=1)"),
        ),
        Mutant(
            "One loud layer is enough for your answer. Count the layers in which the feature is "
            "loud, and compare their share.",
            swap=("in_layer.mean(dim=0) >= layer_share", "in_layer.amax(dim=0) > 0"),
        ),
        Mutant(
            "You found tokens, not features: the reductions ran over layers and features. Features "
            "are the last axis, and it is the one that stays.",
            swap=("loud.mean(dim=1)", "loud.mean(dim=2)"),
        ),
        Mutant(
            "You averaged first and compared then. A few huge values make a quiet feature look "
            "loud, and a moderately loud one is not seen. Compare each value, then count.",
            swap=(
                ("(hidden.abs() >= threshold).double()", "hidden.abs().double()"),
                ("(loud.mean(dim=1) >= token_share)", "(loud.mean(dim=1) >= threshold)"),
            ),
        ),
        Mutant(
            "You compared with >. The definition says at least: a value at the threshold, or a "
            "share that is just reached, counts.",
            swap=("hidden.abs() >= threshold", "hidden.abs() > threshold"),
        ),
    ),
    hints=(
        "There are three comparisons: of each value, of a share of tokens, of a share of layers.",
        "hidden.abs() >= threshold says where it is loud; its mean over dim 1 is a share of tokens "
        "for each layer and feature.",
        "Compare that share, take the mean of the result over layers, compare again; "
        "torch.nonzero(...).flatten() gives the indices.",
    ),
)
