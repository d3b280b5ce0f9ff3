"""How many threads a product runs on, and what it leaves of Numba's and torch's numbers."""

from types import SimpleNamespace

import numba
import pytest
import torch

from labkit.kernels.cpu import parallel


def _told(count, kernel=lambda *given: (*given, numba.get_num_threads())):
    return parallel.run(kernel, count, "x")


def test_a_part_for_a_thread_of_torch_and_no_more_parts_than_rows():
    of_torch = torch.get_num_threads()
    assert parallel.part_count(2**30, 10**6) == min(of_torch, numba.config.NUMBA_NUM_THREADS)
    assert parallel.part_count(2**30, 1) == parallel.part_count(2**30, 0) == 1
    assert parallel.part_count(8, 10**6) == 1


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="Numba may use one thread only")
@pytest.mark.parametrize("name", ["_get_num_threads", "another name"])
def test_numba_uses_as_many_threads_as_parts_and_keeps_its_number(monkeypatch, name):
    """Also where Numba's counter has another name than the one that is known."""
    counter = getattr(parallel.threads, "_get_num_threads", numba.get_num_threads)
    numba.get_num_threads()  # the threads have started
    monkeypatch.setattr(parallel, "threads", SimpleNamespace(**{name: counter}))
    monkeypatch.setattr(parallel, "_COUNTED", [])
    before, of_torch = numba.get_num_threads(), torch.get_num_threads()
    for _ in range(2):  # the first call finds out how to ask
        assert _told(2) == ("x", 2, 2)
    try:
        numba.set_num_threads(1)
        assert _told(2) == ("x", 2, 2)
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)
    known = parallel._COUNTED[0] is numba.get_num_threads
    assert known == (name == "another name")
    assert torch.get_num_threads() == of_torch
