"""Every way to lean on the answer key that we know of, blocked; and what is allowed, allowed."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import inspect
import sqlite3
import subprocess
import sys
import threading

import pytest
import torch

import labkit.core.affine
from labkit.core import affine
from labkit.core.affine import quantize
from labkit.core.scheme import QuantScheme
from labkit.course.checking import evaluate
from labkit.course.guard import _active
from labkit.course.source import compile_function
from labkit.quantize import rtn

HIDDEN = {"answer": quantize}


def right(x, scale):
    return torch.clamp(torch.round(x / scale), -7, 7).to(torch.int32)


def calls_it(x, scale):
    return quantize(x, scale, 0, -7, 7)


def through_the_module(x, scale):
    return affine.quantize(x, scale, 0, -7, 7)


def through_the_package(x, scale):
    return labkit.core.affine.quantize(x, scale, 0, -7, 7)


def imports_it(x, scale):
    from labkit.core.affine import quantize

    return quantize(x, scale, 0, -7, 7)


def through_importlib(x, scale):
    module = importlib.import_module("lab" + "kit.core.affine")
    return module.quantize(x, scale, 0, -7, 7)


def through_dunder_import(x, scale):
    name = "".join(["lab", "kit"])
    return __import__(name + ".core.affine").core.affine.quantize(x, scale, 0, -7, 7)


def through_sys_modules(x, scale):
    name = "".join(["lab", "kit", ".core.affine"])
    return sys.modules[name].quantize(x, scale, 0, -7, 7)


def hidden_in_a_dict(x, scale):
    return HIDDEN["answer"](x, scale, 0, -7, 7)


def hidden_in_a_default(x, scale, answer=quantize):
    return answer(x, scale, 0, -7, 7)


def helper(x, scale):
    return affine.fake_quantize(x, scale, 0, -7, 7)


def through_a_helper(x, scale):
    return (helper(x, scale) / scale).round().int()


def another_labkit_function(x, scale):
    return rtn.quantize(x, scale)


def swallows_the_refusal(x, scale):
    try:
        return HIDDEN["answer"](x, scale, 0, -7, 7)
    except BaseException:
        return right(x, scale)


def in_a_thread(x, scale):
    out = []

    def work():
        out.append(HIDDEN["answer"](x, scale, 0, -7, 7))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return out[0]


def looks_up_the_stack(x, scale):
    return sys._getframe(1).f_locals["expected"]


def reads_the_source(x, scale):
    return len(inspect.getsource(HIDDEN["answer"]))


def reads_the_file(x, scale):
    path = HIDDEN["answer"].__code__.co_filename
    return len(open(path).read())


def searches_memory(x, scale):
    return next(thing for thing in gc.get_objects() if callable(thing))


def writes_progress(x, scale):
    return sqlite3.connect("progress.sqlite3")


def asks_another_process(x, scale):
    return subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True)


def takes_the_hook_out(x, scale):
    sys.setprofile(None)
    return HIDDEN["answer"](x, scale, 0, -7, 7)


class Wrapped:
    def __call__(self, x, scale):
        return quantize(x, scale, 0, -7, 7)

    def method(self, x, scale):
        return quantize(x, scale, 0, -7, 7)


CHEATS = [
    calls_it,
    through_the_module,
    through_the_package,
    imports_it,
    through_importlib,
    through_dunder_import,
    through_sys_modules,
    hidden_in_a_dict,
    hidden_in_a_default,
    through_a_helper,
    another_labkit_function,
    swallows_the_refusal,
    looks_up_the_stack,
    reads_the_source,
    reads_the_file,
    searches_memory,
    writes_progress,
    asks_another_process,
    takes_the_hook_out,
    Wrapped(),
    Wrapped().method,
    functools.partial(quantize, zero_point=0, qmin=-7, qmax=7),
    lambda x, scale: quantize(x, scale, 0, -7, 7),
    quantize,
]


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda c: getattr(c, "__name__", str(type(c))))
def test_leaning_on_the_answer_key_does_not_pass(exercise, cheat):
    verdict = evaluate(exercise, cheat)
    assert verdict.status == "failed"
    assert "leans on the answer key" in verdict.reason
    assert "Write the computation out yourself" in verdict.text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_does_not_help(exercise):
    assert evaluate(exercise, in_a_thread).status == "failed"


def test_an_honest_answer_may_use_a_thread(exercise):
    def answer(x, scale):
        out = []
        thread = threading.Thread(target=lambda: out.append(right(x, scale)))
        thread.start()
        thread.join()
        return out[0]

    assert evaluate(exercise, answer).status == "passed"


@pytest.mark.parametrize("cheat", [calls_it, hidden_in_a_dict, takes_the_hook_out])
def test_the_guard_is_gone_afterwards(exercise, cheat):
    evaluate(exercise, cheat)
    assert sys.getprofile() is None
    assert threading.getprofile() is None
    assert not _active
    assert quantize(torch.ones(2), 1.0, 0, -7, 7).tolist() == [1, 1]
    assert inspect.getsource(quantize)


def test_a_profiler_that_was_there_is_put_back(exercise):
    def profiler(frame, event, argument):
        return None

    sys.setprofile(profiler)
    try:
        evaluate(exercise, right)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_an_honest_answer_may_use_the_standard_library(exercise):
    def answer(x, scale):
        import itertools
        import random
        from collections import Counter

        Counter(itertools.chain([1], [random.Random(0).random()]))
        return right(x, scale)

    assert evaluate(exercise, answer).status == "passed"


def test_allowed_functions_may_be_called_and_may_call_others(exercise):
    allowing = dataclasses.replace(exercise, allow=(affine.fake_quantize,))
    fake_quantize = affine.fake_quantize

    def answer(x, scale):
        return (fake_quantize(x, scale, 0, -7, 7) / scale).round().int()

    assert evaluate(exercise, answer).status == "failed"
    assert evaluate(allowing, answer).status == "passed"


def test_allowing_one_function_does_not_allow_its_neighbours(exercise):
    allowing = dataclasses.replace(exercise, allow=(affine.fake_quantize,))
    assert evaluate(allowing, calls_it).status == "failed"
    assert evaluate(allowing, hidden_in_a_dict).status == "failed"


def test_schemes_may_be_used(exercise):
    def answer(x, scale):
        scheme = QuantScheme(4)
        return torch.clamp(torch.round(x / scale), scheme.qmin, scheme.qmax).int()

    assert evaluate(exercise, answer).status == "passed"


def _with_python_helper(x, scale):
    return torch.nn.functional.hardtanh(torch.round(x / scale), -7, 7).int()


@pytest.mark.parametrize(
    ("forbidden", "answer"),
    [
        (torch.clamp, right),
        (torch.Tensor.int, lambda x, scale: getattr(right(x, scale), "int")()),  # noqa: B009
        (torch.nn.functional.hardtanh, _with_python_helper),
    ],
)
def test_forbidden_functions_outside_labkit(exercise, forbidden, answer):
    assert evaluate(exercise, answer).status == "passed"
    forbidding = dataclasses.replace(exercise, forbid=(forbidden,))
    assert "leans on the answer key" in evaluate(forbidding, answer).reason


def test_a_forbidden_function_found_by_name_at_run_time(exercise):
    def answer(x, scale):
        return getattr(torch, "cl" + "amp")(torch.round(x / scale), -7, 7).int()

    forbidding = dataclasses.replace(exercise, forbid=(torch.clamp,))
    assert "torch" in evaluate(forbidding, answer).reason


def test_a_table_of_labkit_may_not_be_read_under_any_name(exercise):
    import labkit.core.dtypes as dtypes

    table = dtypes.CODEBOOKS
    levels = next(iter(table.values()))

    def reads(x, scale):
        return table

    def reads_an_entry(x, scale):
        return levels

    for cheat in (reads, reads_an_entry):
        assert "leans on the answer key" in evaluate(exercise, cheat).reason


def test_the_declared_solution_passes_the_guard(exercise):
    solution = compile_function(exercise.solution, "<solution>")
    assert evaluate(exercise, solution).status == "passed"
