"""Run a learner's function on one input: on a copy, with the answer key closed, within a time.

The time limit uses SIGALRM, so it works where Python handles signals: in the main thread (where
Jupyter runs cells) of Linux and macOS. Elsewhere there is no limit and the kernel's own interrupt
is the way out, as it is for a loop whose bare `except:` swallows everything.
"""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from labkit.course.guard import AnswerKeyOpened, Guard, part_of_engine
from labkit.course.values import same, snapshot

RING_AGAIN_AFTER_S = 0.2


class TimeLimitReached(BaseException):
    """The learner's function used up its time. No `except Exception` may swallow it."""


class LearnerRaised(Exception):
    """The learner's function raised while a bound was trying it on further inputs."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Outcome:
    """What a function did with one case: its value or its error, and its side effects."""

    value: Any = None
    error: BaseException | None = None
    changed: tuple[int, ...] = ()
    printed: str = ""

    def agrees_with(self, other: Outcome, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
        """Did both do the same thing? Float noise aside, and messages aside."""
        if self.error is not None or other.error is not None:
            return type(self.error) is type(other.error)
        return self.changed == other.changed and same(self.value, other.value, rtol, atol)


@dataclass(frozen=True)
class Case:
    """One input with what the learner's function and the reference did, and what is wrong."""

    arguments: tuple[Any, ...]
    outcome: Outcome
    expected: Outcome
    problem: str | None = None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitReached inside the block once `seconds` have passed, and again until it ends.

    Does nothing outside the main thread or where there is no SIGALRM.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not in_main_thread:
        yield
        return
    running = True

    @part_of_engine
    def ring(number: int, frame: object) -> None:
        if running:
            raise TimeLimitReached

    previous = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), RING_AGAIN_AFTER_S)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, previous)


class Runner:
    """Runs one function on many cases, under one time budget and, for a learner's, one guard."""

    def __init__(
        self, function: Callable[..., Any], seconds: float, guard: Guard | None = None
    ) -> None:
        self.function, self.guard, self.seconds_left = function, guard, seconds

    def run(self, arguments: tuple[Any, ...]) -> Outcome:
        """Outcome on a deep copy of the arguments.

        Raises AnswerKeyOpened or TimeLimitReached; the function's own errors are in the outcome.
        """
        given = copy.deepcopy(arguments)
        printed = io.StringIO()
        value, error = None, None
        try:
            with contextlib.redirect_stdout(printed):
                value = snapshot(self.call(*given))
        except LearnerRaised as raised:
            error = raised.error
        changed = tuple(
            index
            for index, (a, b) in enumerate(zip(arguments, given, strict=True))
            if not same(a, b)
        )
        return Outcome(value, error, changed, printed.getvalue())

    @part_of_engine
    def call(self, *arguments: Any) -> Any:
        """The function's own return value. Raises LearnerRaised around the function's errors."""
        started = time.monotonic()
        try:
            with time_limit(self.seconds_left), self.guard or contextlib.nullcontext():
                value = self.function(*arguments)
        except (Exception, SystemExit) as error:  # the learner's code may raise anything
            self._stop_if_over()
            raise LearnerRaised(error) from error
        finally:
            if self.guard is not None:  # an alarm may have cut the guard's own exit short
                self.guard.closed = False
            self.seconds_left -= time.monotonic() - started
        self._stop_if_over()
        return value

    def _stop_if_over(self) -> None:
        """Stop for good, even if the function swallowed the exception that told it to."""
        if self.guard is not None and self.guard.violation is not None:
            raise AnswerKeyOpened(self.guard.violation)
        if self.seconds_left <= 0:
            raise TimeLimitReached


def place_of_error(error: BaseException, module: str) -> str:
    """The last line of the learner's own code that an error came through: "line 3: x / 0".

    `module` names the module that the learner's function lives in; "" if none was passed.
    """
    place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if trace.tb_frame.f_globals.get("__name__") == module:
            text = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            place = f"line {trace.tb_lineno}: {text}" if text else f"line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
