"""Progress survives what happens to it: many writers, a kill, no disk, damage, a newer version."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from labkit.course import progress
from labkit.course.progress import ProgressStore

WRITER = """
import sys
from pathlib import Path
from labkit.course.progress import ProgressStore
store = ProgressStore(Path(sys.argv[1]))
name, count = sys.argv[2], int(sys.argv[3])
done = 0
while done < count:
    store.record(name, "failed", str(done))
    done += 1
    print(done, flush=True)
sys.exit(len(store.unsaved))
"""


def writer(path, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(home):
    return home / "progress.sqlite3"


def test_what_is_recorded_is_read_by_another_store(path):
    ProgressStore(path).record("02.1", "failed", "You truncate.")
    ProgressStore(path).record("02.1", "passed")
    events = ProgressStore(path).events()
    assert [(e.exercise_id, e.kind, e.detail) for e in events] == [
        ("02.1", "failed", "You truncate."),
        ("02.1", "passed", ""),
    ]


def test_reading_creates_nothing(path):
    assert ProgressStore(path).events() == []
    assert not path.parent.exists()


def test_many_notebooks_at_once_lose_nothing(path):
    count = 15
    writers = [writer(path, f"0{n}.1", count) for n in range(4)]
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert errors == ""
    events = ProgressStore(path).events()
    for n in range(4):
        mine = [int(e.detail) for e in events if e.exercise_id == f"0{n}.1"]
        assert mine == list(range(count))


def test_a_kernel_killed_while_writing_harms_nothing(path):
    store = ProgressStore(path)
    for round_ in range(3):
        process = writer(path, f"0{round_}.1", 10**9)
        acknowledged = [process.stdout.readline() for _ in range(5)]
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].splitlines()
        promised = int((rest or acknowledged)[-1])
        kept = [int(e.detail) for e in store.events() if e.exercise_id == f"0{round_}.1"]
        assert kept == list(range(len(kept)))
        assert len(kept) >= promised
        store.record("99.1", "passed")
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sum(e.exercise_id == "99.1" for e in store.events()) == 3


def test_a_transaction_cut_in_the_middle_is_undone(path):
    store = ProgressStore(path)
    store.record("01.1", "passed")
    code = f"""
        import os, sqlite3
        database = sqlite3.connect({str(path)!r}, isolation_level=None)
        database.execute("PRAGMA cache_spill = 1")
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        x = "x" * 99
        for n in range(3000):
            database.execute("INSERT INTO events VALUES (NULL, '01.2', 'hint', ?, '')", (x,))
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert path.with_name("progress.sqlite3-journal").exists()  # a hot journal was left
    assert [e.exercise_id for e in ProgressStore(path).events()] == ["01.1"]


@pytest.mark.parametrize("place", ["/proc/labkit-home", "{tmp}/file/home"])
def test_nowhere_to_write_keeps_progress_in_memory_and_says_so_once(place, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    directory = place.format(tmp=tmp_path)
    if place.startswith("/proc") and not os.path.isdir("/proc/self"):
        pytest.skip("no /proc here")
    store = ProgressStore(progress.Path(directory) / "progress.sqlite3")
    store.record("00.1", "failed")
    store.record("00.1", "passed")
    assert [e.kind for e in store.events()] == ["failed", "passed"]
    errors = capsys.readouterr().err
    assert errors.count("progress cannot be saved") == 1
    assert "LABKIT_HOME" in errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_read_only_home_is_read_and_never_crashes(path, tmp_path):
    """As an ordinary user: root may write anywhere."""
    ProgressStore(path).record("00.1", "passed")
    # pytest's folders are its user's alone; with several processes there is one more of them.
    own = [folder for folder in tmp_path.parents if folder.name.startswith(("pytest-", "popen-"))]
    for directory in (tmp_path, *own):
        directory.chmod(0o755)
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    if os.getuid() == 0 and closed:
        pytest.skip(f"no ordinary user may enter {closed[0]}")
    path.chmod(0o444)
    path.parent.chmod(0o555)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest machinery here: report through the pipe and leave
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            store = ProgressStore(path)
            before = [e.kind for e in store.events()]
            store.record("00.1", "failed")
            after = [e.kind for e in store.events()]
            os.write(write_end, f"{before} {after} {len(store.unsaved)}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        assert answer.read() == "['passed'] ['passed', 'failed'] 1"
    path.parent.chmod(0o755)


def test_what_could_not_be_saved_is_saved_later(tmp_path):
    blocker = tmp_path / "home"
    blocker.write_text("in the way")
    store = ProgressStore(blocker / "progress.sqlite3")
    store.record("00.1", "failed")
    assert len(store.unsaved) == 1
    blocker.unlink()
    store.record("00.1", "passed")
    assert store.unsaved == []
    assert [e.kind for e in ProgressStore(store.path).events()] == ["failed", "passed"]


def test_a_locked_database_keeps_the_event_for_later(path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "BUSY_TIMEOUT_S", 0.05)
    store = ProgressStore(path)
    store.record("00.1", "failed")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    store.record("00.1", "hint")
    assert "locked" in capsys.readouterr().err
    blocker.execute("ROLLBACK")
    blocker.close()
    store.record("00.1", "passed")
    assert [e.kind for e in store.events()] == ["failed", "hint", "passed"]


def _garbage(path):
    path.write_bytes(b"this is no database " * 500)


def _overwritten_page(path):
    store = ProgressStore(path)
    for number in range(300):
        store.unsaved.append(progress.Event("00.1", "failed", "x" * 80 + str(number), "now"))
    store.record("00.1", "failed")
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(bytes(content))


def _cut_off(path):
    _overwritten_page(path)
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("damage", [_garbage, _overwritten_page, _cut_off])
@pytest.mark.parametrize("first", ["read", "write"])
def test_a_damaged_file_is_moved_aside_and_told(path, damage, first, capsys):
    path.parent.mkdir(parents=True, exist_ok=True)
    damage(path)
    before = path.read_bytes()
    store = ProgressStore(path)
    if first == "read":
        assert store.events() == []
    store.record("00.1", "passed")
    assert [e.kind for e in ProgressStore(path).events()] == ["passed"]
    assert path.with_name("progress.broken-1.sqlite3").read_bytes() == before
    assert capsys.readouterr().err.count("was damaged") == 1


def test_damage_while_the_kernel_runs_is_noticed_too(path):
    store = ProgressStore(path)
    store.record("00.1", "passed")
    _garbage(path)
    store.record("00.2", "passed")
    assert [e.exercise_id for e in store.events()] == ["00.2"]


def test_many_notebooks_finding_damage_move_it_once(path):
    path.parent.mkdir(parents=True)
    _garbage(path)
    writers = [writer(path, f"0{n}.1", 5) for n in range(3)]
    assert [process.wait(timeout=120) for process in writers] == [0, 0, 0]
    for process in writers:
        process.communicate()
    assert len(ProgressStore(path).events()) == 15
    assert len(list(path.parent.glob("*.broken-*"))) == 1


def test_an_empty_file_is_a_new_database(path):
    path.parent.mkdir(parents=True)
    path.touch()
    store = ProgressStore(path)
    assert store.events() == []
    store.record("00.1", "passed")
    assert len(ProgressStore(path).events()) == 1


def test_a_newer_schema_is_left_alone(path, capsys):
    ProgressStore(path).record("00.1", "passed")
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {progress.SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    store = ProgressStore(path)
    store.record("00.1", "failed")
    assert [e.kind for e in store.events()] == ["failed"]
    assert not store.reset()
    assert path.read_bytes() == before
    assert capsys.readouterr().err.count("newer labkit") == 1


def test_reset_forgets_some_or_all(path):
    store = ProgressStore(path)
    for name in ("00.1", "01.1", "01.2"):
        store.record(name, "passed")
    assert store.reset(["01.1"])
    assert [e.exercise_id for e in store.events()] == ["00.1", "01.2"]
    assert store.reset()
    assert ProgressStore(path).events() == []


def test_a_path_with_odd_characters(tmp_path):
    path = tmp_path / "a home? 100%#x" / "progress.sqlite3"
    ProgressStore(path).record("00.1", "passed")
    assert path.exists()
    assert len(ProgressStore(path).events()) == 1


def test_home_is_the_users_data_directory_unless_chosen(home, monkeypatch):
    assert progress.home() == home
    monkeypatch.delenv("LABKIT_HOME")
    assert progress.home().name == "labkit"
