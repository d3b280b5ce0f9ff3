"""Each way in which an answer can be wrong gets its own verdict, and none crashes the notebook."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from labkit.course.checking import evaluate, evaluate_reference
from labkit.course.exercise import Exercise, Mutant
from labkit.course.source import compile_function


def right(x, scale):
    return torch.clamp(torch.round(x / scale), -7, 7).to(torch.int32)


def other_right(x, scale):
    out = torch.empty(x.shape, dtype=torch.int64)
    for index, value in enumerate((x / scale).flatten().tolist()):
        out.view(-1)[index] = max(-7, min(7, round(value)))
    return out


def ellipsis(x, scale): ...


def only_docstring(x, scale):
    """Codes of x, from -7 to 7."""


def raises_not_implemented(x, scale):
    raise NotImplementedError


def computes_and_forgets(x, scale):
    torch.round(x / scale)


@pytest.mark.parametrize("answer", [right, other_right])
def test_right_answers_pass_on_every_seed(exercise, answer):
    for seed in range(10):
        verdict = evaluate(exercise, answer, np.random.default_rng(seed))
        assert verdict.text() == "99.1 Four-bit codes: passed"


def test_the_reference_passes_unguarded(exercise):
    assert evaluate_reference(exercise, np.random.default_rng(0)).status == "passed"


@pytest.mark.parametrize("answer", [ellipsis, only_docstring, raises_not_implemented])
def test_stubs_are_not_attempts(exercise, answer):
    verdict = evaluate(exercise, answer)
    assert verdict.status == "not attempted"


def test_stub_prints_the_same_text_every_time(exercise):
    stub = compile_function(exercise.stub, "<stub>")
    assert {evaluate(exercise, stub).text() for _ in range(3)} == {
        "99.1 Four-bit codes: not attempted"
    }


def test_a_scaffold_left_as_it_was_is_not_an_attempt(exercise):
    scaffold = "def to_codes(x, scale):\n    steps = ...\n    return steps.round() + 1\n"
    with_scaffold = dataclasses.replace(exercise, stub=scaffold)
    commented = scaffold.replace("steps = ...", "# I wonder\n\n    steps = ...")
    assert evaluate(with_scaffold, compile_function(commented, "<s>")).status == "not attempted"


def test_a_missing_return_is_named(exercise):
    verdict = evaluate(exercise, computes_and_forgets)
    assert verdict.status == "not attempted"
    assert "is a return missing?" in verdict.text()


def test_a_result_in_place_of_the_function(exercise):
    verdict = evaluate(exercise, torch.zeros(3))
    assert verdict.status == "failed"
    assert "give the function itself" in verdict.reason


def test_every_mutant_gets_its_own_message(exercise):
    for index, mutant in enumerate(exercise.mutants):
        verdict = evaluate(exercise, exercise.mutant_functions[index])
        assert verdict.status == "failed"
        assert verdict.misconception == mutant.message
        assert mutant.message in verdict.text()


def test_a_misconception_is_recognised_in_other_words(exercise):
    def answer(x, scale):
        codes = (x.double() / scale).int()
        return torch.minimum(torch.maximum(codes, torch.tensor(-7)), torch.tensor(7))

    assert evaluate(exercise, answer).misconception == "You truncate."


def test_a_misconception_is_recognised_beside_another_mistake_on_other_cases(exercise):
    def answer(x, scale):  # right on vectors, truncates matrices
        steps = x / scale
        return torch.clamp(steps.round() if x.ndim == 1 else steps.trunc(), -7, 7).int()

    for seed in range(5):
        verdict = evaluate(exercise, answer, np.random.default_rng(seed))
        assert verdict.misconception == "You truncate."


def test_an_unknown_mistake_is_not_given_a_misconception(exercise):
    verdict = evaluate(exercise, lambda x, scale: right(x, scale) // 2)
    assert verdict.status == "failed"
    assert verdict.mutant is None


def test_a_symptom_recognises_its_mutant(exercise):
    shifted = Mutant(
        "You shifted the codes.",
        source="def to_codes(x, scale):\n    return torch.round(x / scale).int() + 1",
        recognise=lambda trial: bool((trial.got >= trial.expected).all()),
    )
    with_symptom = dataclasses.replace(exercise, mutants=(*exercise.mutants[:5], shifted))
    answer = lambda x, scale: right(x, scale) + 3  # noqa: E731
    assert evaluate(with_symptom, answer).misconception == "You shifted the codes."


def test_the_smallest_failing_input_is_shown_with_expected_and_got(exercise):
    verdict = evaluate(exercise, lambda x, scale: torch.zeros_like(right(x, scale)) + 9)
    text = verdict.text()
    assert verdict.inputs["x"].numel() <= 6
    for label in ("input", "x = float32", "scale = ", "expected", "got", "why", 'hint("99.1")'):
        assert label in text


def test_changing_the_input_is_seen_even_if_the_result_is_right(exercise):
    def answer(x, scale):
        x /= scale
        return torch.clamp(torch.round(x), -7, 7).int()

    verdict = evaluate(exercise, answer)
    assert verdict.status == "failed"
    assert "changes its input x in place" in verdict.reason


def test_an_exception_is_shown_with_the_learners_line(exercise):
    def answer(x, scale):
        print("scale is", scale)
        return x / None

    text = evaluate(exercise, answer).text()
    assert "TypeError" in text
    assert "return x / None" in text
    assert "printed   scale is" in text


@pytest.mark.parametrize("error", [SystemExit(3), RecursionError("deep"), MemoryError()])
def test_no_exception_leaves_the_check(exercise, error):
    def answer(x, scale):
        raise error

    verdict = evaluate(exercise, answer)
    assert verdict.status == "failed"
    assert type(error).__name__ in verdict.got


def test_wrong_number_of_arguments(exercise):
    assert "TypeError" in evaluate(exercise, lambda x: x).got


def test_an_interrupt_by_the_learner_goes_through(exercise):
    def answer(x, scale):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(exercise, answer)


def test_an_endless_loop_ends(exercise):
    def answer(x, scale):
        while True:
            pass

    verdict = evaluate(dataclasses.replace(exercise, time_limit=0.2), answer)
    assert "did not finish within 0.2 seconds" in verdict.reason


def test_an_endless_loop_that_catches_exceptions_ends(exercise):
    def answer(x, scale):
        while True:
            try:
                x.sum()
            except Exception:
                continue

    verdict = evaluate(dataclasses.replace(exercise, time_limit=0.2), answer)
    assert "did not finish" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, scale: right(x, scale).numpy(), "should be a torch tensor; it is a numpy array"),
        (lambda x, scale: right(x, scale).tolist(), "should be a torch tensor; it is a list"),
        (lambda x, scale: right(x, scale)[None], "should have shape"),
        (lambda x, scale: right(x, scale).bool(), "should hold integers; its dtype is bool"),
        (lambda x, scale: (right(x, scale), scale), "it is a tuple of 2"),
        (lambda x, scale: "codes", "it is a str"),
    ],
)
def test_wrong_kind_of_answer(exercise, answer, reason):
    assert reason in evaluate(exercise, answer).reason


def test_swallowing_the_alarm_does_not_help(exercise):
    def answer(x, scale):
        try:
            while True:
                pass
        except BaseException:
            return right(x, scale)

    verdict = evaluate(dataclasses.replace(exercise, time_limit=0.2), answer)
    assert "did not finish" in verdict.reason


def test_random_answers_are_seen(exercise):
    def answer(x, scale):
        return right(x + torch.rand(()) * scale * 4, scale)

    assert "two answers" in evaluate(exercise, answer).reason


def test_a_constant_does_not_pass_where_the_bounds_would_let_it(exercise):
    loose = dataclasses.replace(
        exercise,
        reference=lambda x, scale: float(x.abs().max()),
        bounds=(lambda trial: None,),
    )
    verdict = evaluate(loose, lambda x, scale: 1.0)
    assert "same answer for every input" in verdict.reason


def test_an_answer_that_varies_only_over_calls_does_not_pass(exercise):
    answers = iter(range(1000))
    assert evaluate(exercise, lambda x, scale: next(answers)).status == "failed"


def test_every_check_brings_new_inputs(exercise):
    seen = []

    def answer(x, scale):
        seen.append((tuple(x.shape), float(x.sum()), scale))
        return right(x, scale)

    evaluate(exercise, answer)
    first = set(seen[1:])
    seen.clear()
    evaluate(exercise, answer)
    assert len(first & set(seen)) <= 2  # the fixed edge case, and a bound's variation of it


def _float_exercise(exercise: Exercise, reference) -> Exercise:
    return dataclasses.replace(exercise, reference=reference, bounds=(lambda trial: None,))


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_non_finite_answers(exercise, bad, word):
    def answer(x, scale):
        out = x / scale
        out.view(-1)[0] = bad
        return out

    verdict = evaluate(_float_exercise(exercise, lambda x, scale: x / scale), answer)
    assert word in verdict.reason


def _refuses(x, scale):
    if x.ndim == 1:
        raise ValueError("a matrix is wanted")
    return x.sum()


def test_refusing_what_the_reference_refuses_is_right(exercise):
    assert evaluate(_float_exercise(exercise, _refuses), lambda *a: _refuses(*a)).status == "passed"


def test_not_refusing_it_is_wrong(exercise):
    verdict = evaluate(_float_exercise(exercise, _refuses), lambda x, scale: x.sum())
    assert "should refuse this input: raise ValueError" in verdict.reason


def test_refusing_with_the_wrong_error_is_wrong(exercise):
    def answer(x, scale):
        if x.ndim == 1:
            raise KeyError("vector")
        return x.sum()

    assert "raise ValueError" in evaluate(_float_exercise(exercise, _refuses), answer).reason


def test_an_error_on_a_bounds_further_input_is_the_learners(exercise):
    def answer(x, scale):
        if x.dtype != torch.float32 or bool((x / scale == torch.round(x / scale)).all()):
            raise ZeroDivisionError("only fresh inputs")
        return right(x, scale)

    verdict = evaluate(exercise, answer)
    assert verdict.status == "failed"
    assert "ZeroDivisionError" in verdict.reason or "ZeroDivisionError" in verdict.got


def test_a_solution_that_uses_a_helper_passes(exercise):
    assert evaluate(exercise, lambda x, scale: right(x, scale)).status == "passed"
