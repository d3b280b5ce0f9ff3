"""What the learner has done: an append-only list of events in one SQLite file.

The file is `progress.sqlite3` under $LABKIT_HOME, or else the user's data directory. Every
operation opens it, does one short transaction and closes it, so several notebooks and a killed
kernel cannot hurt each other: SQLite's rollback journal undoes a half-written transaction. (Its
write-ahead log would need shared memory, which home directories on a network do not have.)

Nothing here ever stops a notebook. What cannot be saved is kept in memory, said once on stderr,
and saved together with the next event if that succeeds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import platformdirs

from labkit.core.file_lock import exclusive

Kind = Literal["failed", "passed", "hint", "reveal"]
Result = TypeVar("Result")

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 20.0
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
CREATE = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    exercise_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    at TEXT NOT NULL
)"""


class Event(NamedTuple):
    """One thing that happened: `at` is UTC in ISO 8601, `detail` the misconception, if any."""

    exercise_id: str
    kind: Kind
    detail: str
    at: str


class NewerSchema(Exception):
    """The file was written by a later version of labkit, which may mean other things by it."""


class ProgressStore:
    """Events of one learner, in the file `path` and, until that works, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unsaved: list[Event] = []
        self._told: set[str] = set()
        self._checked = False

    def record(self, exercise_id: str, kind: Kind, detail: str = "") -> None:
        """Append one event. Never raises over the file."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.unsaved.append(Event(exercise_id, kind, detail, now))
        if self._try(self._save) is not None:
            self.unsaved.clear()

    def events(self) -> list[Event]:
        """Everything known, oldest first. Never raises over the file."""
        return [*(self._try(self._load) or []), *self.unsaved]

    def reset(self, exercise_ids: Iterable[str] | None = None) -> bool:
        """Forget some exercises, or all. False if the file could not be changed."""
        wanted = None if exercise_ids is None else set(exercise_ids)
        self.unsaved = [
            e for e in self.unsaved if wanted is not None and e.exercise_id not in wanted
        ]
        return self._try(lambda: self._forget(wanted)) is not None

    def _save(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction("rwc") as database:
            database.executemany(
                "INSERT INTO events (exercise_id, kind, detail, at) VALUES (?, ?, ?, ?)",
                self.unsaved,
            )
        return len(self.unsaved)

    def _load(self) -> list[Event]:
        if not self.path.exists():
            return []
        with contextlib.closing(self._connect("rw")) as database:
            if _version(database) == 0:
                return []
            rows = database.execute("SELECT exercise_id, kind, detail, at FROM events ORDER BY id")
            return [Event(*row) for row in rows]

    def _forget(self, wanted: set[str] | None) -> int:
        if not self.path.exists():
            return 0
        with self._transaction("rw") as database:
            if wanted is None:
                return database.execute("DELETE FROM events").rowcount
            return database.executemany(
                "DELETE FROM events WHERE exercise_id = ?", [(name,) for name in sorted(wanted)]
            ).rowcount

    @contextlib.contextmanager
    def _transaction(self, mode: str) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(self._connect(mode)) as database:
            database.execute("BEGIN IMMEDIATE")
            if _version(database) == 0:
                database.execute(CREATE)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            yield database
            database.execute("COMMIT")

    def _connect(self, mode: str) -> sqlite3.Connection:
        database = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
        )
        try:
            if not self._checked:
                _check_pages(database)
                self._checked = True
            if _version(database) > SCHEMA_VERSION:
                raise NewerSchema
        except BaseException:
            database.close()
            raise
        return database

    def _try(self, operation: Callable[[], Result]) -> Result | None:
        for _ in range(2):
            try:
                return operation()
            except NewerSchema:
                self._tell(
                    f"{self.path} was written by a newer labkit. It is left alone, and this "
                    f"session's progress is not saved. Update labkit to use it."
                )
                return None
            except sqlite3.DatabaseError as error:
                if _is_broken(error) and self._move_aside():
                    continue
                self._tell_unsaved(error)
                return None
            except OSError as error:
                self._tell_unsaved(error)
                return None
        return None

    def _move_aside(self) -> bool:
        """Rename a damaged file, unless another notebook has done so already."""
        self._checked = False
        try:
            with exclusive(self.path.with_suffix(".lock")):
                if not self._still_broken():
                    return True
                number = 1
                while (aside := self.path.with_suffix(f".broken-{number}.sqlite3")).exists():
                    number += 1
                self.path.rename(aside)
                journal = Path(f"{self.path}-journal")
                if journal.exists():
                    journal.rename(f"{aside}-journal")
        except OSError as error:
            self._tell_unsaved(error)
            return False
        self._tell(
            f"{self.path} was damaged and could not be read. It is kept as {aside.name}; "
            f"progress starts anew."
        )
        return True

    def _still_broken(self) -> bool:
        if not self.path.exists():
            return False
        try:
            self._connect("rw").close()
        except NewerSchema:
            return False
        except sqlite3.DatabaseError as error:
            return _is_broken(error)
        return False

    def _tell_unsaved(self, error: Exception) -> None:
        self._tell(
            f"progress cannot be saved in {self.path.parent} ({error}). It is kept until this "
            f"kernel ends. Set LABKIT_HOME to a folder you can write to, and restart the kernel."
        )

    def _tell(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            print(f"labkit: {note}", file=sys.stderr)


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _check_pages(database: sqlite3.Connection) -> None:
    answer = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if answer != "ok":
        error = sqlite3.DatabaseError(answer)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    # The low byte is the kind of error, the rest says more about it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in BROKEN


def home() -> Path:
    """The learner's own folder: $LABKIT_HOME, or the user's data directory."""
    chosen = os.environ.get("LABKIT_HOME")
    return Path(chosen) if chosen else platformdirs.user_data_path("labkit", appauthor=False)


def store() -> ProgressStore:
    """The learner's progress. One object per folder, so that unsaved events are not lost."""
    return _store_at(home() / "progress.sqlite3")


@functools.cache
def _store_at(path: Path) -> ProgressStore:
    return ProgressStore(path)
