"""ONNX files with our integers in them, run by ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from image_nets import calibrated, random_pixels, small_net
from onnx import numpy_helper

from labkit.core.errors import CalibrationError, FormatError, ModelError
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.evaluate.onnx_session import OnnxSession
from labkit.training.convert import convert
from labkit.training.onnx_export import export_float, export_integers
from labkit.training.static import prepare_static, with_integer_biases

SHAPE = (1, 8, 8)
PIXELS, OTHERS = random_pixels(32), random_pixels(64, seed=9)
SCHEMES = {
    "channel": QuantScheme(8, True, "channel"),
    "tensor": QuantScheme(8, True, "tensor"),
    "4 bits": QuantScheme(4, True, "channel"),
}


def test_the_float_file_gives_the_float_net(tmp_path):
    net = small_net()
    export_float(prepare_static(net), SHAPE, tmp_path / "float.onnx")
    session = OnnxSession(tmp_path / "float.onnx")
    torch.testing.assert_close(session(OTHERS), net(OTHERS), rtol=1e-4, atol=1e-5)
    assert session(OTHERS[:3]).shape == (3, 3)  # any batch size


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_onnx_runtime_gives_what_our_integers_give(tmp_path, scheme, optimize):
    """Biases in int32 on both sides: what is left are codes that a float sum puts over an edge.

    50 dB is an error of 0.3 % of the logits; the rounding itself costs far more.
    """
    net = small_net()
    prepared = calibrated(net, PIXELS, scheme)
    export_integers(prepared, SHAPE, tmp_path / "int8.onnx")
    given = OnnxSession(tmp_path / "int8.onnx", optimize=optimize)(OTHERS)
    ours = convert(with_integer_biases(prepared)).model(OTHERS)
    parity = sqnr_db(ours, given)
    assert parity > 50
    assert parity > sqnr_db(net(OTHERS).detach(), ours) + 10


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_file_holds_our_codes_scales_and_zero_points(tmp_path, scheme):
    prepared = calibrated(small_net(), PIXELS, scheme)
    export_integers(prepared, SHAPE, tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, layer in convert(with_integer_biases(prepared)).layers.items():
        codes = stored[f"{name}.1.weight.codes"]
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes, layer.codes.numpy())
        scales = np.ravel(stored[f"{name}.1.weight.scale"])
        np.testing.assert_array_equal(scales, layer.scale.flatten().numpy())
        assert stored[f"{name}.1.bias.codes"].dtype == np.int32
    assert not [name for name in stored if name.endswith((".weight", ".bias"))]  # no floats left
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    # Seven layers, both sides of two sums, the mean; two pairs of them read the same tensor.
    assert len(rounded) == 7 + 5 - 2


def test_every_convolution_is_fused_into_an_integer_one(tmp_path):
    export_integers(calibrated(small_net(), PIXELS), SHAPE, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(
        str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert kinds["QLinearConv"] == 6 and kinds["QLinearAdd"] == 2
    assert not kinds["Conv"] and not kinds["Add"] and not kinds["Relu"]


def test_an_untrained_observer_is_not_exported(tmp_path):
    with pytest.raises(CalibrationError, match="has seen nothing"):
        export_integers(prepare_static(small_net()), SHAPE, tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


@pytest.mark.parametrize(
    "inputs", [QuantScheme(4, False, "tensor"), QuantScheme(8, True, "tensor")]
)
def test_activations_that_onnx_runtime_has_no_type_for_are_refused(tmp_path, inputs):
    prepared = calibrated(small_net(), PIXELS, QuantScheme(8), inputs)
    with pytest.raises(FormatError, match="uint8"):
        export_integers(prepared, SHAPE, tmp_path / "none.onnx")


def test_a_net_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no layer of it rounds"):
        export_integers(small_net(), SHAPE, tmp_path / "none.onnx")


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(FormatError, match=r"bad\.onnx"):
        OnnxSession(tmp_path / "bad.onnx")
    with pytest.raises(FormatError, match=r"gone\.onnx"):
        OnnxSession(tmp_path / "gone.onnx")
