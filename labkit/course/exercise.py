"""What an exercise is: declared once, in `labkit/course/chapters/ch*.py`.

A chapter file holds a list `EXERCISES`. One entry looks like this:

    from labkit.core.affine import choose_qparams
    from labkit.course.bounds import matches_reference
    from labkit.course.exercise import Exercise, Mutant

    STUB = '''
    def symmetric_scale(x, bits):
        "The step of a symmetric grid of `bits` bits that just covers `x`."
        ...
    '''

    SOLUTION = '''
    def symmetric_scale(x, bits):
        return x.abs().max() / (2 ** (bits - 1) - 1)
    '''

    def reference(x, bits):                  # same arguments as the learner's function
        return choose_qparams(x.min(), x.max(), bits, symmetric=True)[0]

    def cases(rng):                          # a new rng on every check
        yield torch.tensor([-3.0, 1.0]), 4   # one tuple of arguments per case; edge cases first
        for rows, columns in shapes(rng, 8):
            yield weight(rng, rows, columns), int(rng.integers(2, 9))

    def largest_value_fits(trial):
        'the largest |x| must land inside the grid'
        levels = trial["x"].abs().max() / trial.got
        if levels > 2 ** (trial["bits"] - 1) - 1 + 1e-3:
            return f"the largest |x| needs {levels:.1f} steps"

    EXERCISES = [
        Exercise(
            id="02.1", title="Symmetric parameters", minutes=8, difficulty=1,
            goal="choose the scale of a symmetric grid",
            stub=STUB, solution=SOLUTION, reference=reference, answer_key=choose_qparams,
            generate=cases, bounds=(largest_value_fits, matches_reference(rtol=1e-5)),
            mutants=(
                Mutant("You divided by 2**bits: ...", swap=("2 ** (bits - 1) - 1", "2 ** bits")),
                Mutant("You ignored negative values: ...", swap=("x.abs().max()", "x.max()")),
                ...                          # 5 to 10 of them
            ),
            hints=("Which |x| must be representable?", "How many steps are there above zero?"),
        ),
    ]

The learner's function and every mutant are compiled with `math`, `np`, `torch` and
`F` (torch.nn.functional) in reach, so the notebook's first cell imports those.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from labkit.core.errors import ExerciseError
from labkit.course.source import compile_function, function_node, without_docstring

FEWEST_MUTANTS, MOST_MUTANTS = 5, 10


@dataclass(frozen=True)
class Trial:
    """One input, what the learner's function made of it, and what the reference made of it.

    `trial["x"]` is the argument called x. `trial.call(*args)` runs the learner's function again,
    for properties such as idempotence and monotonicity.
    """

    inputs: dict[str, Any]
    got: Any
    expected: Any
    call: Callable[..., Any]

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]


Bound = Callable[[Trial], str | None]
"""A property of a right answer. Returns what is wrong, or None. Its docstring states the rule."""


@dataclass(frozen=True)
class Mutant:
    """A plausible wrong answer, and the sentence that names the misconception behind it.

    Give either `swap=(old, new)`, or several pairs in a tuple, applied to the solution's text
    without its docstring (each `old` must occur there exactly once), or a whole function as
    `source`.
    A learner's answer is recognised as this mutant when it gives the same results on every case
    of a check; where another test is better, `recognise(trial)` is asked on every failing case.
    """

    message: str
    swap: tuple[str, str] | tuple[tuple[str, str], ...] = ()
    source: str = ""
    recognise: Callable[[Trial], bool] | None = None

    def text(self, solution: str) -> str:
        """The wrong answer's source text."""
        if self.source:
            return textwrap.dedent(self.source).strip() + "\n"
        solution = without_docstring(solution)
        pairs = (self.swap,) if isinstance(self.swap[0], str) else self.swap
        for old, new in pairs:
            if solution.count(old) != 1:
                raise ExerciseError(
                    f"mutant {self.message!r}: {old!r} occurs {solution.count(old)} times in the "
                    f"solution; it must occur once. Use a longer piece of text, or `source`."
                )
            solution = solution.replace(old, new)
        return solution


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise. Fields:

    id          "02.1": chapter, dot, number
    minutes     expected time; difficulty 1 (a line) to 5 (an algorithm)
    goal        completes "you will be able to ..."
    stub        source of the cell the learner starts from; the notebook must contain it verbatim
    solution    source of a short right answer, standalone (it calls nothing of labkit)
    reference   callable with the learner's arguments; where it raises, the learner must raise too
    answer_key  what `reveal` shows, if not `reference`: the library's own function
    generate    rng -> tuples of arguments (8 to 40 small cases: edge cases, square matrices)
    bounds      properties, tried in order; `matches_reference()` is one of them
    mutants     5 to 10 wrong answers; hints: from a nudge to nearly the answer
    allow       labkit functions, classes or module names that the learner may call
    forbid      callables outside labkit that would give the answer away
    namespace   extra names the learner's cell has in reach
    time_limit  seconds for all cases together
    """

    id: str
    title: str
    minutes: int
    difficulty: int
    goal: str
    stub: str
    solution: str
    reference: Callable[..., Any]
    generate: Callable[[np.random.Generator], Iterable[tuple[Any, ...]]]
    bounds: tuple[Bound, ...]
    mutants: tuple[Mutant, ...]
    hints: tuple[str, ...]
    answer_key: Callable[..., Any] | None = None
    allow: tuple[Any, ...] = ()
    forbid: tuple[Any, ...] = ()
    namespace: dict[str, Any] = field(default_factory=dict)
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        for name in ("stub", "solution"):
            object.__setattr__(self, name, textwrap.dedent(getattr(self, name)).strip() + "\n")
        problems = [problem for problem, wrong in self._rules() if wrong]
        if problems:
            raise ExerciseError(f"exercise {self.id!r}: {'; '.join(problems)}")

    def _rules(self) -> list[tuple[str, bool]]:
        stub, solution = function_node(self.stub), function_node(self.solution)
        if stub is None or solution is None:
            return [("stub and solution must each define a function", True)]
        count = len(self.mutants)
        return [
            ("the id must look like '02.1'", not re.fullmatch(r"\d\d\.\d{1,2}", self.id)),
            ("difficulty is 1 to 5", self.difficulty not in range(1, 6)),
            ("minutes must be positive", self.minutes < 1),
            (f"{count} mutants; 5 to 10 wanted", not FEWEST_MUTANTS <= count <= MOST_MUTANTS),
            ("at least two hints", len(self.hints) < 2),
            ("at least one bound", not self.bounds),
            ("stub and solution differ in name", stub.name != solution.name),
            (
                "stub and solution differ in arguments",
                ast.dump(stub.args) != ast.dump(solution.args),
            ),
            ("two mutants share a message", len({m.message for m in self.mutants}) != count),
        ]

    @property
    def name(self) -> str:
        """Name of the function that the learner writes."""
        return function_node(self.stub).name

    @property
    def chapter(self) -> str:
        """Number of the chapter, as in "02"."""
        return self.id.split(".")[0]

    @cached_property
    def signature(self) -> inspect.Signature:
        """Signature of the learner's function, as declared by the stub."""
        return inspect.signature(compile_function(self.stub, f"<stub {self.id}>", self.namespace))

    def bind(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """The arguments of one case by name."""
        return dict(self.signature.bind(*arguments).arguments)

    @cached_property
    def mutant_functions(self) -> tuple[Callable[..., Any], ...]:
        """Every mutant, compiled."""
        return tuple(
            compile_function(
                mutant.text(self.solution), f"<mutant {number} of {self.id}>", self.namespace
            )
            for number, mutant in enumerate(self.mutants, 1)
        )
