"""A fresh home for every test, and one small exercise to try answers on."""

from __future__ import annotations

import pytest
import torch

from labkit.core import affine
from labkit.course import hints, progress
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant
from labkit.course.inputs import shapes, weight


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    progress._store_at.cache_clear()
    hints._shown.clear()
    return tmp_path / "home"


def _reference(x, scale):
    return affine.quantize(x, scale, 0, -7, 7)


def _cases(rng):
    yield torch.tensor([-9.0, -7.5, 0.4, 2.5, 2.6, 100.0]), 1.0
    for rows, columns in shapes(rng, 6):
        yield weight(rng, rows, columns), float(rng.uniform(0.1, 0.5))


def _in_range(trial):
    """codes lie in -7 .. 7"""
    return None if int(trial.got.abs().max()) <= 7 else f"one is {int(trial.got.abs().max())}"


def _idempotent(trial):
    """quantizing twice changes nothing"""
    again = trial.call(trial.got * trial["scale"], trial["scale"])
    return None if torch.equal(again, trial.got) else "the second time gives other codes"


SAMPLE = Exercise(
    id="99.1",
    title="Four-bit codes",
    minutes=5,
    difficulty=2,
    goal="turn numbers into 4-bit codes",
    stub='''
    def to_codes(x, scale):
        """Codes of x, from -7 to 7."""
        ...
    ''',
    solution='''
    def to_codes(x, scale):
        """Codes of x, from -7 to 7."""
        return torch.clamp(torch.round(x / scale), -7, 7).to(torch.int32)
    ''',
    reference=_reference,
    answer_key=affine.quantize,
    generate=_cases,
    bounds=(_in_range, _idempotent, matches_reference(rtol=0)),
    mutants=(
        Mutant("You truncate.", swap=("torch.round(x / scale)", "torch.trunc(x / scale)")),
        Mutant("You do not clamp.", swap=("torch.clamp(torch.round(x / scale), -7, 7)",
                                          "torch.round(x / scale)")),
        Mutant("You use -8.", swap=("-7", "-8")),
        Mutant("You multiply by the scale.", swap=("x / scale", "x * scale")),
        Mutant("You return floats.", swap=(".to(torch.int32)", "")),
        Mutant("You round half up.", swap=("torch.round(x / scale)",
                                           "torch.floor(x / scale + 0.5)")),
    ),
    hints=("Divide, round, clamp.", "torch.round, torch.clamp, then .to(torch.int32)"),
)  # fmt: skip


@pytest.fixture
def exercise():
    return SAMPLE
