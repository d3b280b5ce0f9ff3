"""Read a learner's function before it runs: does it name something that gives the answer away?

The bytecode says which globals, attributes and imports a function uses. A call into labkit would
be seen while it runs (`labkit.course.guard`); a table that is merely read would not.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from labkit.course.guard import LABKIT, Guard, label, module_of

FORBIDDEN_ATTRIBUTES = {
    "_getframe", "currentframe", "f_back", "f_locals", "f_globals", "setprofile", "settrace",
    "addaudithook", "__subclasses__",
}  # fmt: skip
FORBIDDEN_MODULES = {
    "inspect", "gc", "sqlite3", "ctypes", "importlib", "subprocess", "dis", "linecache", "labkit",
}  # fmt: skip
NAME_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"}
ATTRIBUTE_LOADS = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"}
FILLERS = {"CACHE", "PUSH_NULL", "EXTENDED_ARG"}
UNKNOWN = object()


def names_that_peek(function: Any, guard: Guard) -> str | None:
    """What a function refers to that would give it the answer, or None. Nothing is run."""
    for piece in _functions_behind(function, set()):
        for code in _all_codes(piece.__code__):
            if code.co_filename.startswith(LABKIT) and not guard.permits(piece):
                return f"it is labkit's own {code.co_qualname}"
            found = _offending_text(code, piece) or _offending_name(code, piece, guard)
            if found:
                return found
    return None


def _functions_behind(target: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The function itself, what it wraps, and the helpers of its own module that it names."""
    if id(target) in seen:
        return
    seen.add(id(target))
    if isinstance(target, FunctionType):
        yield target
    for part in _parts(target):
        if isinstance(part, FunctionType | MethodType | functools.partial | type):
            yield from _functions_behind(part, seen)


def _parts(target: Any) -> list[Any]:
    if isinstance(target, functools.partial):
        return [target.func, *target.args, *target.keywords.values()]
    if isinstance(target, MethodType):
        return [target.__func__]
    if isinstance(target, type):
        return list(vars(target).values())
    if isinstance(target, FunctionType):
        parts = [getattr(target, "__wrapped__", None), *(target.__defaults__ or ())]
        names = _names_in_reach(target)
        parts += [names.get(name) for code in _all_codes(target.__code__) for name in code.co_names]
        parts += [names.get(name) for name in target.__code__.co_freevars]
        return [part for part in parts if module_of(part) == target.__module__]
    return [getattr(target, "py_func", None), type(target).__call__ if callable(target) else None]


def _names_in_reach(function: FunctionType) -> dict[str, Any]:
    names = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # an empty cell: the name is not bound yet
            continue
    return names


def _all_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_codes(constant)


def _offending_text(code: CodeType, function: FunctionType) -> str | None:
    for constant in code.co_consts:
        if isinstance(constant, str) and "labkit" in constant and constant != function.__doc__:
            return f"it names {constant!r} in its text"
    return None


def _offending_name(code: CodeType, function: FunctionType, guard: Guard) -> str | None:
    names = _names_in_reach(function)
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if why := _gives_away(default, guard):
            return why
    current: Any = UNKNOWN
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in FILLERS:
            continue
        if operation == "IMPORT_NAME":
            if name.split(".")[0] in FORBIDDEN_MODULES and name not in guard.allowed_modules:
                return f"it imports {name}"
            current = sys.modules.get(name, UNKNOWN)
        elif operation in NAME_LOADS:
            current = names.get(name, UNKNOWN)
        elif operation in ATTRIBUTE_LOADS and name in FORBIDDEN_ATTRIBUTES:
            return f"it uses {name}"
        elif operation in ATTRIBUTE_LOADS and isinstance(current, ModuleType):
            current = vars(current).get(name, UNKNOWN)  # no property of an object runs here
        else:
            current = UNKNOWN
        if current is not UNKNOWN and (why := _gives_away(current, guard)):
            return why
    return None


def _gives_away(target: Any, guard: Guard) -> str | None:
    if any(target is forbidden for forbidden in guard.forbid):
        return f"it uses {label(target)}"
    if guard.permits(target):
        return None
    if isinstance(target, ModuleType):
        named = target.__name__.split(".")[0] in FORBIDDEN_MODULES
        return f"it uses the module {target.__name__}" if named else None
    if module_of(target).split(".")[0] == "labkit":
        return f"it uses {label(target)}"
    home = _home_in_labkit(target, guard)
    return f"it uses a table of {home}" if home else None


def _home_in_labkit(target: Any, guard: Guard) -> str | None:
    """The labkit module that holds this very table, however the learner's notebook named it."""
    if not isinstance(target, dict | list | tuple | set | frozenset | np.ndarray | torch.Tensor):
        return None
    if isinstance(target, tuple | frozenset) and not target:
        return None  # Python shares one empty tuple between everybody
    for name, module in list(sys.modules.items()):
        if not name.startswith("labkit.") or name in guard.allowed_modules:
            continue
        for value in list(vars(module).values()):
            entries = value.values() if isinstance(value, dict) else ()
            if value is target or any(entry is target for entry in entries):
                return name
    return None
