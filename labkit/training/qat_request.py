"""What `labkit qat` was asked for, checked before the work begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from labkit.core.errors import FormatError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.data.corpora import BUNDLED
from labkit.training.prepare import QatConfig

FORMATS = ("gptq", "compressed-tensors")


@dataclass(frozen=True)
class QatRequest:
    """What to train, on which text, and how it is stored.

    Args:
        model: folder or hub name; None for $LABKIT_MODEL or the bundled model.
        bits, group_size: of the weights, symmetric; None for one scale a row.
        activations: bits of the inputs, token by token: 8, or None for floats.
        format: one of `FORMATS`; None for "gptq", and "compressed-tensors" with activations.
        start: "gptq", its codes, or "rtn", the nearest ones on the clip of least squared error.
        corpora: names or text files; empty for the course's own mixture of text and tasks with
            the bundled model, and for its two corpora with another.
        sequences: calibration sequences of each corpus, for GPTQ.
        rows, length: of a batch.
        evaluate_tokens: held-out tokens of each corpus.
        seed: of the text's order.

    Raises:
        SchemeError: bits, group_size, activations or start that cannot be.
        FormatError: no such format, or one that does not hold such inputs.
    """

    model: str | None = None
    bits: int = 3
    group_size: int | None = None
    activations: int | None = None
    format: str | None = None
    start: Literal["gptq", "rtn"] = "gptq"
    corpora: tuple[str, ...] = ()
    sequences: int = 64
    rows: int = 8
    length: int = 256
    evaluate_tokens: int = 8192
    seed: int = 7

    def __post_init__(self) -> None:
        self.config()
        if self.start not in ("gptq", "rtn"):
            raise SchemeError(f"no start {self.start!r}", remedy="Choose gptq or rtn.")
        if self.activations not in (None, 8):
            raise SchemeError(
                f"activations of {self.activations} bits",
                remedy="Choose 8, the width that formats store, or leave them out.",
            )
        if self.file_format not in FORMATS:
            raise FormatError(
                f"no format {self.file_format!r}", remedy=f"Choose from {', '.join(FORMATS)}."
            )
        if self.activations and self.file_format == "gptq":
            raise FormatError(
                "gptq holds no rounded inputs",
                remedy="Choose compressed-tensors, or leave activations out.",
            )

    @property
    def file_format(self) -> str:
        """The name in `labkit.formats.FORMATS`."""
        return self.format or ("compressed-tensors" if self.activations else "gptq")

    def config(self) -> QatConfig:
        """How the model is prepared."""
        grouped = self.group_size is not None
        weights = QuantScheme(
            self.bits, True, "group" if grouped else "channel", self.group_size, narrow_range=False
        )
        inputs = QuantScheme(8, True, "token", narrow_range=False) if self.activations else None
        return QatConfig(weights, inputs)

    def text(self) -> tuple[str, ...]:
        """The corpora that are calibrated with and evaluated on."""
        return self.corpora or BUNDLED

    def as_json(self) -> dict[str, Any]:
        """For the record by which a resumed run is known."""
        return asdict(self) | {"corpora": list(self.corpora)}
