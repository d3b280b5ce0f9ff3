"""Execute a notebook as a learner who opens it for the first time, in this very Python."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ipykernel.kernelspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from labkit.notebooks.errors import NotebookError

CELL_TIMEOUT = 600
"""Seconds a cell may take while it is built. nbval gives it less: see comparing.py."""


class ThisPython(KernelSpecManager):
    """Finds one kernel, whatever its name: the ipykernel of the running interpreter.

    A "python3" kernel that the user installed elsewhere would be found first otherwise.
    """

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        spec = ipykernel.kernelspec.get_kernel_dict()
        return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **spec)


@contextlib.contextmanager
def fresh_learner() -> Iterator[dict[str, str]]:
    """Environment variables of somebody without progress, profile or a model of their own.

    Temporary files go where all is removed at the end: a kernel that is killed leaves its own.
    """
    with tempfile.TemporaryDirectory(prefix="labkit-notebook-", ignore_cleanup_errors=True) as home:
        mine = {"LABKIT_HOME": str(Path(home, "labkit")), "IPYTHONDIR": str(Path(home, "ipython"))}
        mine["TMPDIR"] = home
        foreign = ("LABKIT_MODEL", "MPLBACKEND", "JUPYTER_COLUMNS")
        yield {key: value for key, value in os.environ.items() if key not in foreign} | mine


OTHER_CPU = {
    # One thread and no AVX-512: sums are taken in another order, as on somebody else's machine.
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "NUMBA")},
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
}


def run(notebook: NotebookNode, folder: Path, name: str, other_cpu: bool = False) -> NotebookNode:
    """Execute every cell with `folder` as working directory; outputs land in `notebook`.

    Args:
        notebook: changed in place.
        folder: the notebook's own, for the paths it uses.
        name: what to call it in an error.
        other_cpu: imitate a smaller, older machine.

    Raises:
        NotebookError: a cell raised, took longer than CELL_TIMEOUT, or killed its kernel.
    """
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        shutdown_kernel="immediate",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its warnings are not for a reader
        resources={"metadata": {"path": str(folder)}},
    )
    with fresh_learner() as environment:
        try:
            environment |= OTHER_CPU if other_cpu else {}
            # A client leaves alone a kernel whose manager it was given, unless it is told.
            return client.execute(env=environment, cleanup_kc=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise NotebookError(
                f"a cell failed:\n{error}", name, "Nothing was written; mend the source."
            ) from error
