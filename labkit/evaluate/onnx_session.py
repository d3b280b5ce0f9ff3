"""Run an ONNX file in ONNX Runtime, on the CPU, as a function of a tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from labkit.core.errors import FormatError

_FAILURES = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile")
_FAILURES += ("NotImplemented", "RuntimeException")


class OnnxSession:
    """logits = session(pixels); one input, one output, both float32.

    Args:
        path: the file.
        threads: for one operator; 0 for as many as there are cores.
        optimize: fuse Q, DQ and the operators between them into integer ones. Without it every
            node is computed as it stands there, in floats.
        exact: on processors without VNNI, ONNX Runtime multiplies uint8 by int8 with an
            instruction whose sums of two products stop at 16 bits; this asks for one that does not.

    Raises:
        FormatError: no file that ONNX Runtime can run.
    """

    def __init__(
        self, path: Path | str, threads: int = 1, *, optimize: bool = True, exact: bool = True
    ) -> None:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        )
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except tuple(getattr(failures, name) for name in _FAILURES) as error:
            raise FormatError(f"ONNX Runtime refuses it: {error}", where=str(path)) from error
        self._input = self.session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """float32 in, float32 out."""
        return torch.from_numpy(self.session.run(None, {self._input: x.contiguous().numpy()})[0])
