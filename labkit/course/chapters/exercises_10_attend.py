"""Exercise 10.2: attention of one token over an int8 cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.kernels import decode_attention

Tensor = torch.Tensor


def attend(
    query: Tensor, key_codes: Tensor, key_scale: Tensor, value_codes: Tensor, value_scale: Tensor
) -> Tensor:
    """[heads, dim] float32."""
    parts = (part[None] for part in (key_codes, value_codes, key_scale, value_scale))
    lengths = torch.tensor([key_codes.shape[1]])
    return decode_attention(query[None], *parts, lengths, implementation="reference")[0]


def _cases(rng: np.random.Generator) -> Iterator[tuple[Tensor, ...]]:
    shapes = [(4, 2, 5, 8), (4, 4, 4, 4), (6, 2, 7, 16), (6, 3, 3, 4), (2, 1, 1, 8)]
    shapes += [(int(rng.integers(1, 4)) * 2, 2, int(rng.integers(2, 9)), 8) for _ in range(4)]
    for heads, kv_heads, tokens, dim in shapes:
        codes = rng.integers(-127, 128, (2, kv_heads, tokens, dim)).astype(np.int8)
        scale = rng.uniform(0.5, 2, (2, kv_heads, tokens)).astype(np.float32) / 100
        query = torch.from_numpy(rng.standard_normal((heads, dim)).astype(np.float32))
        keys, values = (torch.from_numpy(part) for part in codes)
        key_scale, value_scale = (torch.from_numpy(part) for part in scale)
        yield query, keys, key_scale, values, value_scale


def _a_weighted_mean(trial: Trial) -> str | None:
    """the answer lies between the smallest and the largest value of each channel"""
    values = trial["value_codes"].float() * trial["value_scale"][..., None]
    repeat = len(trial["query"]) // len(values)
    low, high = (end.repeat_interleave(repeat, 0) for end in (values.amin(1), values.amax(1)))
    slack = 1e-4 + 1e-4 * values.abs().max()
    if bool(((trial.got >= low - slack) & (trial.got <= high + slack)).all()):
        return None
    return "a number lies outside of what any token's value holds"


_DOC = '''
    def attend(query, key_codes, key_scale, value_codes, value_scale):
        """softmax(q · k / sqrt(dim)) · v for one new token: float [heads, dim].

        query: float [heads, dim]. Codes: int8 [kv_heads, tokens, dim]; scales: float
        [kv_heads, tokens]. Neighbouring query heads share a KV head.
        """'''

ATTEND = Exercise(
    id="10.2",
    title="Attention over an int8 cache",
    minutes=12,
    difficulty=3,
    goal="compute attention from 8-bit codes, each scale used once per token",
    stub=f"{_DOC}\n        ...\n    ",
    solution=f"""{_DOC}
        heads, dim = query.shape
        kv_heads = key_codes.shape[0]
        q = query.reshape(kv_heads, heads // kv_heads, dim)
        scores = torch.einsum("hrd,htd->hrt", q, key_codes.float()) * key_scale[:, None]
        weights = torch.softmax(scores / dim**0.5, dim=-1)
        weights = weights * value_scale[:, None]
        out = torch.einsum("hrt,htd->hrd", weights, value_codes.float())
        return out.reshape(heads, dim)
    """,
    reference=attend,
    answer_key=decode_attention,
    generate=_cases,
    bounds=(_a_weighted_mean, matches_reference(rtol=1e-3, atol=1e-3)),
    forbid=(torch.nn.functional.scaled_dot_product_attention,),
    mutants=(
        Mutant(
            "Your heads read the wrong keys: with 4 heads and 2 KV heads, heads 0 and 1 share the "
            "first, 2 and 3 the second. You dealt them out in turn.",
            swap=(
                (
                    "query.reshape(kv_heads, heads // kv_heads, dim)",
                    "query.reshape(heads // kv_heads, kv_heads, dim).transpose(0, 1)",
                ),
                ("out.reshape(heads, dim)", "out.transpose(0, 1).reshape(heads, dim)"),
            ),
        ),
        Mutant(
            "The keys' scale is missing. A score is q · codes times the token's scale.",
            swap=(" * key_scale[:, None]", ""),
        ),
        Mutant(
            "You used the keys' scale behind the softmax. It belongs to the score: the softmax "
            "must see real numbers.",
            swap=(
                ("key_codes.float()) * key_scale[:, None]", "key_codes.float())"),
                (
                    "weights * value_scale[:, None]",
                    "weights * key_scale[:, None] * value_scale[:, None]",
                ),
            ),
        ),
        Mutant(
            "The values' scale is missing: you mixed codes, not values.",
            swap=("weights * value_scale[:, None]", "weights"),
        ),
        Mutant(
            "Weights must sum to 1 before the values' scales join them. You normalised afterwards, "
            "and so divided the scales away.",
            swap=(
                "weights * value_scale[:, None]",
                "weights * value_scale[:, None] / (weights * value_scale[:, None])"
                ".sum(-1, keepdim=True)",
            ),
        ),
        Mutant(
            "The scores are not divided by sqrt(dim).",
            swap=("scores / dim**0.5", "scores"),
        ),
        Mutant(
            "You divided by dim, not by its root.",
            swap=("dim**0.5", "dim"),
        ),
        Mutant(
            "The softmax runs over the heads. It shares out one head's attention over the tokens.",
            swap=("dim=-1)", "dim=1)"),
        ),
        Mutant(
            "You took keys and values the wrong way round in the scales.",
            swap=(
                ("* key_scale[:, None]", "* value_scale[:, None]"),
                ("weights = weights * value_scale", "weights = weights * key_scale"),
            ),
        ),
    ),
    hints=(
        "A key is codes * scale, one scale for the token. What does that make of q · k?",
        "score = (q · codes) * key_scale / sqrt(dim). And a value's scale can join its weight.",
        "query.reshape(kv_heads, heads // kv_heads, dim) lets einsum pair heads with their keys.",
    ),
)
