"""Source text of functions: compiling it, reading it back, and telling a stub from an attempt."""

from __future__ import annotations

import ast
import inspect
import linecache
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from labkit.core.errors import ExerciseError


def standard_names() -> dict[str, Any]:
    """What every exercise cell may use without importing it."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    return {"math": math, "np": np, "numpy": np, "torch": torch, "F": F}


def function_node(text: str) -> ast.FunctionDef | None:
    """The last function that a source text defines at its top level."""
    functions = [
        node for node in ast.parse(textwrap.dedent(text)).body if isinstance(node, ast.FunctionDef)
    ]
    return functions[-1] if functions else None


def without_docstring(text: str) -> str:
    """The source text with the docstring of its last function cut out."""
    node = function_node(text)
    if node is None or ast.get_docstring(node) is None or len(node.body) == 1:
        return text
    lines = text.splitlines(keepends=True)
    first = node.body[0]
    return "".join(lines[: first.lineno - 1] + lines[first.end_lineno :])


def compile_function(
    text: str, filename: str, extra: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Run `text` as a notebook cell would and return the last function it defines.

    The text is put in `linecache`, so tracebacks and `inspect.getsource` can show it.
    Raises ExerciseError if the text defines no function.
    """
    node = function_node(text)
    if node is None:
        raise ExerciseError(f"{filename}: no function is defined in {text!r}")
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    names: dict[str, Any] = {"__name__": "exercise_cell", **standard_names(), **(extra or {})}
    exec(compile(text, filename, "exec"), names)
    return names[node.name]


def _body_dump(node: ast.FunctionDef) -> str:
    body = node.body
    if ast.get_docstring(node) is not None:
        body = body[1:]
    return "\n".join(ast.dump(statement) for statement in body)


def _says_nothing(node: ast.FunctionDef) -> bool:
    for statement in node.body:
        is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_constant and not isinstance(statement, ast.Pass):
            return False
    return True


def is_stub(function: Callable[..., Any], stub: str) -> bool:
    """Is this function still the declared stub, or empty?

    Comments, blank lines and the docstring do not count. False where no source can be read.
    """
    try:
        node = function_node(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError):
        return False
    if node is None:
        return False
    return _says_nothing(node) or _body_dump(node) == _body_dump(function_node(stub))
