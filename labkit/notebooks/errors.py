"""What can be wrong with a notebook while it is built."""

from __future__ import annotations

from labkit.core.errors import LabkitError


class NotebookError(LabkitError, RuntimeError):
    """A notebook that cannot be found, that fails when it is run, or that is out of step."""
