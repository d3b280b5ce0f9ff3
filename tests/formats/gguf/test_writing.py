"""A file appears when it is whole, whatever happens on the way; memory holds a piece of it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from formats.gguf.files import TENSORS, blocks, write_example
from labkit.core.errors import FormatError, StorageError
from labkit.formats.gguf.partial import partial_of
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.writer import Declared, GgufWriter

BIG = [Declared("x", (4096, 4096), "F32"), Declared("y", (4096, 4096), "F32")]


@contextmanager
def no_file_beyond(size: int):
    """The system refuses to let any file of this process grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_may_come_one_by_one(tmp_path):
    write_example(tmp_path / "whole.gguf")
    with GgufFile(tmp_path / "whole.gguf") as whole:
        fields = whole.fields
    with GgufWriter(tmp_path / "rows.gguf", fields, TENSORS) as writer:
        for declared in TENSORS:
            for row in blocks(declared):
                writer.write(declared.name, row)
    assert (tmp_path / "rows.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_memory_holds_a_piece_at_a_time(tmp_path):
    """128 MiB are written and read; Python allocates less than 8."""
    row = np.arange(4096, dtype=np.float32)
    tracemalloc.start()
    with GgufWriter(tmp_path / "big.gguf", {}, BIG) as writer:
        for declared in BIG:
            for _ in range(0, 4096, 256):
                writer.write(declared.name, np.tile(row, (256, 1)).view(np.uint8))
    with GgufFile(tmp_path / "big.gguf") as file:
        for declared in BIG:
            for first in range(0, 4096, 256):
                rows = file.raw(declared.name)[first : first + 256]
                assert np.array_equal(rows.view(np.float32)[-1], row)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20 + 2 * 4096 * 256 * 4
    tracemalloc.stop()


@pytest.mark.slow
def test_a_file_larger_than_memory(tmp_path):
    """4 GiB, in a process that may have 1 GiB of memory of its own (beside what it maps)."""
    script = """
        import resource, sys
        import numpy as np
        from labkit.formats.gguf.reader import GgufFile
        from labkit.formats.gguf.writer import Declared, GgufWriter

        data = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + 2**30, data + 2**30))
        tensors = [Declared(f"t{i}", (32768, 1024), "F32") for i in range(32)]
        with GgufWriter(sys.argv[1], {}, tensors) as writer:
            for i, tensor in enumerate(tensors):
                writer.write(tensor.name, np.full((32768, 4096), i, np.uint8))
        with GgufFile(sys.argv[1]) as file:
            assert file.nbytes > 2**32
            for i, name in enumerate(file.tensors):
                assert (file.raw(name)[::512, ::64] == i).all()
                assert file.read(name).shape == (32768, 1024)
            np.empty(3 * 2**27, np.float32)
    """
    path = tmp_path / "large.gguf"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    path.unlink()
    # The last line asks for more than is allowed: the limit was in force.
    assert "Unable to allocate 1.50 GiB" in run.stderr and run.returncode == 1, run.stderr


def test_an_error_leaves_nothing(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        GgufWriter(tmp_path / "a.gguf", {}, TENSORS) as writer,
    ):
        writer.write(TENSORS[0].name, blocks(TENSORS[0]))
        assert partial_of(tmp_path / "a.gguf").exists()
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path):
    path = write_example(tmp_path / "a.gguf")
    before = path.read_bytes()
    with pytest.raises(FormatError, match="there is something already"):
        GgufWriter(path, {}, [])
    assert path.read_bytes() == before
    with GgufWriter(path, {}, [], force=True):
        assert path.read_bytes() == before  # until the new file is whole
    assert path.read_bytes() != before
    with pytest.raises(FormatError, match="there is something already"):
        GgufWriter(tmp_path, {}, [], force=True)


def test_what_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "a.gguf"
    with (
        pytest.raises(FormatError, match="there is something already"),
        GgufWriter(path, {}, []),
    ):
        path.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_leaves_nothing(tmp_path):
    x = np.zeros((4096, 4096), np.float32)
    with (
        no_file_beyond(2**20),
        pytest.raises(StorageError, match="could not be written") as caught,
        GgufWriter(tmp_path / "a.gguf", {}, BIG) as writer,
    ):
        writer.write("x", x)
    assert isinstance(caught.value, OSError)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_very_end(tmp_path):
    """What fits a buffer reaches the disk, or not, when the file is closed."""
    with (
        no_file_beyond(100),
        pytest.raises(StorageError, match="could not be written"),
        GgufWriter(tmp_path / "a.gguf", {}, [Declared("x", (64,), "F32")]) as writer,
    ):
        writer.write("x", np.zeros(64, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_was_there(tmp_path):
    path = write_example(tmp_path / "a.gguf")
    before = path.read_bytes()
    with (
        no_file_beyond(2**20),
        pytest.raises(StorageError),
        GgufWriter(path, {}, BIG, force=True) as writer,
    ):
        writer.write("x", np.zeros((4096, 4096), np.float32))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    huge = [Declared("x", (2**31, 2**20), "F32")]
    with pytest.raises(StorageError, match=f"{2**53 + 96} bytes are needed"):
        GgufWriter(tmp_path / "a.gguf", {}, huge)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_none(tmp_path):
    with pytest.raises(StorageError, match="could not be written"):
        GgufWriter(tmp_path / "no folder" / "a.gguf", {}, [])


def test_killed_halfway(tmp_path):
    """Nothing under the target's name; the next run removes what the killed one left."""
    path = tmp_path / "a.gguf"
    pid = os.fork()
    if not pid:
        writer = GgufWriter(path, {}, BIG)
        writer.write("x", np.zeros((1000, 4096), np.float32))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert [entry.name for entry in tmp_path.iterdir()] == [".a.gguf.partial"]
    assert partial_of(path).stat().st_size > 10**7
    write_example(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]
    with GgufFile(path) as file:
        assert np.array_equal(file.raw(TENSORS[1].name), blocks(TENSORS[1]))


def test_two_runs_at_once(tmp_path):
    path = tmp_path / "a.gguf"
    with GgufWriter(path, {}, [Declared("x", (1,), "F32")]) as writer:
        with pytest.raises(StorageError, match="another run is writing this file"):
            GgufWriter(path, {}, [])
        writer.write("x", np.ones(1, np.float32))
    with GgufFile(path) as file:
        assert file.read("x").tolist() == [1]
