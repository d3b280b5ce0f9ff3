"""Quantizers, one method a file; each compiled loop (*_numba) beside the plain one."""

from pathlib import Path

from labkit.core.compiled import drop_stale, share_folders

share_folders()
drop_stale(Path(__file__).parent)
