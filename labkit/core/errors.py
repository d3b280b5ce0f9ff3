"""The errors that labkit raises: each says what was wrong, where, and what to do about it.

Every one is a :class:`LabkitError` and a fitting builtin, so a caller may catch either.
"""

from __future__ import annotations


class LabkitError(Exception):
    """Base of every error that labkit raises on purpose.

    Args:
        what: what was wrong, with the offending values.
        where: the layer, file, shape or argument that it was found in.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}. {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[type[LabkitError], tuple[str, str, str]]:
        # Worker processes send errors back pickled; the default would nest the message in itself.
        return type(self), (self.what, self.where, self.remedy)


class NonFiniteError(LabkitError, ValueError):
    """A tensor holds NaN or infinity where only finite numbers have a meaning."""


class ShapeError(LabkitError, ValueError):
    """Two tensors, or a tensor and a scheme, do not fit each other."""


class SchemeError(LabkitError, ValueError):
    """A quantization scheme, scale or zero-point that cannot exist."""


class GroupSizeError(SchemeError):
    """The group size does not divide the axis that is to be cut into groups."""


class PackingError(LabkitError, ValueError):
    """A code does not fit its bits, or a bit stream does not fit its count."""


class CalibrationError(LabkitError, ValueError):
    """Calibration saw no data, or data that no range can be read from."""


class CorpusError(LabkitError, ValueError):
    """A corpus or a calibration set that is missing, empty or not what it claims to be."""


class ModelError(LabkitError, RuntimeError):
    """A model that cannot be found, read or walked."""


class FormatError(LabkitError, ValueError):
    """A file whose bytes do not follow the format that they should be in."""


class StorageError(FormatError, OSError):
    """A file that could not be written: the disk is full, or the place is closed to us."""


class OfflineError(LabkitError, ConnectionError):
    """Something that only the network has was asked for, and there is no network."""


class ExerciseError(LabkitError, ValueError):
    """An exercise that does not exist, or that was declared wrongly."""


class PoolError(LabkitError, RuntimeError):
    """A pool of memory has too little left, or was asked for what it does not hold."""


class ResumeError(LabkitError, ValueError):
    """A run that was begun with other settings than those it is to go on with."""


class PeerError(LabkitError, RuntimeError):
    """A real library, run beside ours in its own environment, failed."""


class PeerMissingError(PeerError):
    """The environment of a real library is not there, or not whole."""
