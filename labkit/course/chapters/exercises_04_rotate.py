"""Exercise 04.5: rotate what lies between two layers, and undo it in the weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import weight
from labkit.quantize.rotation import random_hadamard, random_orthogonal, rotate_input, rotate_output


def rotate_pair(
    writer: torch.Tensor, reader: torch.Tensor, rotation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Qᵀ writer, reader Q): the stream between them is h Q, the output the same."""
    return rotate_output(writer, rotation), rotate_input(reader, rotation)


def _cases(
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for index in range(9):
        hidden = int(rng.choice([2, 3, 4, 6, 8]))
        # Square weights too: there, every product has the right shape.
        inputs, outputs = (hidden, hidden) if index % 3 == 0 else rng.integers(2, 9, 2).tolist()
        seed = int(rng.integers(10**6))
        make = random_hadamard if index % 2 else random_orthogonal
        yield weight(rng, hidden, inputs), weight(rng, outputs, hidden), make(hidden, seed).float()


def _output_stays(trial: Trial) -> str | None:
    """reader @ writer, what the two layers compute together, stays"""
    writer, reader = trial.got
    if writer.shape != trial["writer"].shape or reader.shape != trial["reader"].shape:
        return f"the shapes are {list(writer.shape)} and {list(reader.shape)}"
    before, after = trial["reader"] @ trial["writer"], reader @ writer
    off = float((before - after).abs().max())
    return None if off <= 1e-4 * float(before.abs().max()) + 1e-5 else f"it is off by {off:.3g}"


def _stream_is_rotated(trial: Trial) -> str | None:
    """what flows between them is h @ Q, for any input"""
    writer, _ = trial.got
    identity = torch.eye(trial["writer"].shape[1])
    wanted = (identity @ trial["writer"].T) @ trial["rotation"]
    off = float((identity @ writer.T - wanted).abs().max())
    return None if off <= 1e-4 * float(wanted.abs().max()) + 1e-5 else f"it is off by {off:.3g}"


ROTATE_PAIR = Exercise(
    id="04.5",
    title="Rotate between two layers",
    minutes=10,
    difficulty=3,
    goal="rotate a stream of activations and undo it in the weights",
    stub='''
    def rotate_pair(writer, reader, rotation):
        """(new writer [hidden, in], new reader [out, hidden]): the stream between is h @ Q."""
        ...
    ''',
    solution='''
    def rotate_pair(writer, reader, rotation):
        """(new writer [hidden, in], new reader [out, hidden]): the stream between is h @ Q."""
        return rotation.T @ writer, reader @ rotation
    ''',
    reference=rotate_pair,
    answer_key=rotate_output,
    generate=_cases,
    bounds=(_output_stays, _stream_is_rotated, matches_reference(rtol=1e-4, atol=1e-5)),
    mutants=(
        Mutant(
            "The transpose is missing on the writer. h = x @ writer.T, so h @ Q = x @ (Qᵀ "
            "writer)ᵀ: the new writer is Qᵀ writer. With a symmetric Q you would not notice.",
            swap=("rotation.T @ writer", "rotation @ writer"),
        ),
        Mutant(
            "The reader undoes the rotation with Q.T where it needs Q: (h Q)(reader Q)ᵀ = h Q Qᵀ "
            "readerᵀ, and Q Qᵀ is the identity.",
            swap=("reader @ rotation", "reader @ rotation.T"),
        ),
        Mutant(
            "Both are turned by the opposite of Q: the output stays, but the stream is h Qᵀ, and "
            "whoever else reads it expects h Q.",
            swap=(
                "rotation.T @ writer, reader @ rotation",
                "rotation @ writer, reader @ rotation.T",
            ),
        ),
        Mutant(
            "The writer alone was rotated. The reader still expects the old stream: rotate its "
            "columns back, reader @ Q.",
            swap=("reader @ rotation", "reader"),
        ),
        Mutant(
            "The reader alone was rotated. The stream it reads must be turned as well, by the rows "
            "of the writer: Qᵀ writer.",
            swap=("rotation.T @ writer", "writer"),
        ),
        Mutant(
            "Nothing is rotated: the output stays, and so do the outliers.",
            swap=("rotation.T @ writer, reader @ rotation", "writer + 0, reader + 0"),
        ),
        Mutant(
            "You multiplied by Q twice on the reader's side, as if Q were its own inverse. Only a "
            "symmetric Q is; in general Q Qᵀ = 1.",
            swap=("reader @ rotation", "reader @ rotation @ rotation"),
        ),
    ),
    hints=(
        "Write the stream as a row vector: h = x @ writer.T. What must the new writer be so that "
        "this becomes h @ Q?",
        "(A B)ᵀ = Bᵀ Aᵀ: x @ writer.T @ Q = x @ (Q.T @ writer).T.",
        "The reader gets h @ Q and must give h @ reader.T: insert Q @ Q.T, which is the identity.",
    ),
)
