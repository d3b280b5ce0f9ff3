"""Read prose and code out of the learner's own Python: text that every machine already has.

A *unit* is what must never be split between training and evaluation: a top-level module with all
its files, or one language-reference topic. Modules that some Python from 3.11 to 3.14 lacks are
left out, so that the units (though not every word in them) are the same on all of them.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Not library text: tests, tables, installers, other people's packages, the topics (read apart).
_SKIPPED = (
    "test tests idle_test site-packages dist-packages idlelib lib2to3 turtledemo ensurepip "
    "encodings pydoc_data __pycache__ __phello__ this antigravity"
).split()
# In some of Python 3.11-3.14 but not in all.
_UNSTABLE = (
    "_android_support _apple_support _bootsubprocess _collections_abc _colorize _ios_support "
    "_opcode_metadata _py_warnings _pydatetime _pylong _pyrepl _ast_unparse _aix_support "
    "aifc annotationlib asynchat asyncore cgi cgitb chunk compression crypt distutils imghdr imp "
    "mailcap msilib nntplib nturl2path pipes smtpd sndhdr sunau telnetlib uu xdrlib"
).split()


def stdlib_root() -> Path:
    """The folder that holds the standard library of the running Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def unit_of(module: str) -> str:
    """One name for a module and its pure-Python twin, as `decimal` for `_pydecimal`."""
    return module.lstrip("_").removeprefix("py").lstrip("_") or module


def source_files() -> tuple[tuple[str, Path], ...]:
    """(unit, path) of every standard-library source file that the corpora use, in name order."""
    return _source_files(stdlib_root())


@cache
def _source_files(root: Path) -> tuple[tuple[str, Path], ...]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        # Other people's packages are not even looked through: there may be many.
        folders[:] = [name for name in folders if _used(root, Path(folder, name))]
        found += [path for name in files if _used(root, path := Path(folder, name))]
    sources = (path for path in sorted(found) if path.suffix == ".py")
    return tuple((unit_of(_top(root, path)), path) for path in sources)


def _top(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def _used(root: Path, path: Path) -> bool:
    top = _top(root, path)
    if path.name.removesuffix(".py") in _SKIPPED or top in _UNSTABLE:
        return False
    return not top.startswith(("config-", "_sysconfigdata", "_sysconfig", "lib-dynload"))


def _docstring_nodes(tree: ast.AST) -> Iterator[ast.Expr]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    holders = (ast.stmt, ast.excepthandler, ast.match_case)  # expressions hold no docstrings
    todo = [tree]
    while todo:
        node = todo.pop()
        todo += (child for child in ast.iter_child_nodes(node) if isinstance(child, holders))
        if not isinstance(node, owners) or not node.body:
            continue
        first = node.body[0]
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield first


def docstrings(source: str) -> list[str]:
    """The docstrings of a source text, dedented, in the order in which they stand."""
    nodes = sorted(_docstring_nodes(ast.parse(source)), key=lambda node: node.lineno)
    return [_dedent(node.value.value) for node in nodes]


def _dedent(text: str) -> str:
    lines = text.expandtabs().strip().splitlines()
    margins = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(margins, default=0)
    return "\n".join([*lines[:1], *(line[margin:] for line in lines[1:])]).strip()


def code_without_docstrings(source: str) -> str:
    """Source text without docstrings and comments: what is left is code alone.

    The prose corpus takes the docstrings; leaving them here would put the same text in both.
    """
    lines = source.splitlines(keepends=True)
    for node in _docstring_nodes(ast.parse(source)):
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    text = _without_comments("".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _without_comments(source: str) -> str:
    lines = source.splitlines(keepends=True)
    try:
        found = [
            token
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        ]
    except (tokenize.TokenError, IndentationError):  # a body that was nothing but its docstring
        return source
    for token in reversed(found):
        row, column = token.start
        lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    return re.sub(r"\n[ \t]*\n+", "\n\n", "".join(lines))


@cache
def topics() -> dict[str, str]:
    """Language-reference topics (what `help("if")` prints), by name."""
    from pydoc_data import topics as module

    return dict(sorted(module.topics.items()))
