"""Keep the answer key closed while a learner's function runs.

A profile hook sees every Python call (and every C call) on its way, and an audit hook sees files,
processes and databases being opened; `labkit.course.peeking` reads the function's bytecode before
it runs. Together they stop an answer that leans on the library, by intent or by habit. This is no
sandbox against an attacker: the learner owns the machine.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, MethodType, ModuleType, TracebackType
from typing import Any

LABKIT = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
ALWAYS_ALLOWED = ("labkit.core.errors", "labkit.core.scheme")
FORBIDDEN_EVENTS = (
    "sys.addaudithook", "sqlite3.connect", "gc.",
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork",
)  # fmt: skip
# Seen as C calls, because Python itself raises the audit events of these, too.
HOOK_SETTERS = (sys.setprofile, sys.settrace)

# Audit hooks cannot be taken out again, so one is put in for good and looks at this list.
_active: list[Guard] = []
_own_codes: set[CodeType] = set()


class AnswerKeyOpened(BaseException):
    """The learner's function reached for the answer. No `except Exception` may swallow it."""


def part_of_engine(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function of the engine that runs, or is the caller, while the guard is closed."""
    _own_codes.add(function.__code__)
    return function


class Guard:
    """A context in which calls into labkit, and of `forbid`, raise AnswerKeyOpened.

    `allow` holds labkit callables, classes or module names that may be called; what they call in
    turn is their own business. `violation` keeps the first offence, even if it was swallowed.
    """

    def __init__(self, allow: tuple[Any, ...] = (), forbid: tuple[Any, ...] = ()) -> None:
        self.allowed_modules = (*ALWAYS_ALLOWED, *(a for a in allow if isinstance(a, str)))
        self.allowed = [a for a in allow if not isinstance(a, str)]
        members = [m for a in self.allowed if isinstance(a, type) for m in vars(a).values()]
        self.allowed_codes = {_code_of(a) for a in (*self.allowed, *members)} - {None}
        self.forbid = forbid
        self.forbidden_codes = {_code_of(f) for f in forbid} - {None}
        self.forbidden_c = {getattr(f, "__name__", ""): f for f in forbid if _code_of(f) is None}
        self.violation: str | None = None
        self.closed = False

    def __enter__(self) -> Guard:
        _install_audit_hook()
        self._previous = sys.getprofile()
        _active.append(self)
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)
        self.closed = True  # last: setting a hook is itself an offence from here on
        return self

    @part_of_engine
    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = False
        sys.setprofile(self._previous)
        threading.setprofile(None)
        _active.remove(self)

    def offend(self, what: str) -> None:
        """Remember the first offence and stop the learner's function."""
        self.violation = self.violation or what
        raise AnswerKeyOpened(self.violation)

    def permits(self, target: Any) -> bool:
        """May the learner's function name this object?"""
        if any(target is allowed for allowed in self.allowed):
            return True
        module = target.__name__ if isinstance(target, ModuleType) else module_of(target)
        return module in self.allowed_modules

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.closed:
            return
        if event == "call":
            code = frame.f_code
            if code in self.forbidden_codes:
                self.offend(f"it calls {code.co_qualname}")
            elif code.co_filename.startswith(LABKIT) and not self._may_run(frame):
                module = frame.f_globals.get("__name__", "labkit")
                self.offend(f"it calls {module}.{code.co_qualname}")
        elif event == "c_call" and argument in HOOK_SETTERS:
            self.offend(f"it uses {label(argument)}")
        elif event == "c_call" and self.forbidden_c:
            target = self.forbidden_c.get(getattr(argument, "__name__", ""))
            if target is not None and (argument == target or _is_method_of(argument, target)):
                self.offend(f"it calls {label(target)}")

    def _may_run(self, frame: FrameType) -> bool:
        code, caller = frame.f_code, frame.f_back
        if code in self.allowed_codes or code in _own_codes:
            return True
        if frame.f_globals.get("__name__") in self.allowed_modules:
            return True
        # What an allowed function calls is its own business.
        return (
            caller is not None
            and caller.f_code.co_filename.startswith(LABKIT)
            and caller.f_code not in _own_codes
        )


@functools.cache
def _install_audit_hook() -> None:
    sys.addaudithook(_audit)


@part_of_engine
def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or not _active[-1].closed or _active[-1].violation:
        return
    if event == "open":
        path = arguments[0]
        if isinstance(path, str) and path.startswith(LABKIT) and not path.endswith(".pyc"):
            _active[-1].offend("it reads the course's files")
    elif event.startswith(FORBIDDEN_EVENTS):
        _active[-1].offend(f"it uses {event}")


part_of_engine(Guard.offend)


def label(target: Any) -> str:
    """An object's dotted name, for a message."""
    if isinstance(target, ModuleType):
        return target.__name__
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return f"{module_of(target)}.{name}" if module_of(target) else name


def module_of(target: Any) -> str:
    """Name of the module that an object, or its class, was defined in; "" if it does not say."""
    module = getattr(target, "__module__", None)
    return module if isinstance(module, str) else ""


def _code_of(target: Any) -> CodeType | None:
    if isinstance(target, property):
        target = target.fget
    if isinstance(target, classmethod | staticmethod | MethodType):
        target = target.__func__
    if not callable(target) or isinstance(target, type):
        return None
    return getattr(inspect.unwrap(target), "__code__", None)


def _is_method_of(called: Any, target: Any) -> bool:
    owner = getattr(target, "__objclass__", None)
    return owner is not None and isinstance(getattr(called, "__self__", None), owner)
