"""ONNX Runtime answers as torch does; its INT8 stays close where it rounds MatMul alone."""

import pytest
import torch
from tiny_classifier import Tokenizer, colours_or_animals, small_classifier

from labkit.core.errors import CalibrationError, ModelError
from labkit.evaluate.classification import logits_of
from labkit.models.classifier_onnx import (
    export_onnx,
    quantize_weights,
    quantize_whole,
    run_onnx,
    session,
)
from labkit.models.text_classifier import tokenize


@pytest.fixture(scope="module")
def model():
    return small_classifier()


@pytest.fixture(scope="module")
def batches():
    # Batches and lengths other than those of the export.
    return tokenize(Tokenizer(), colours_or_animals(), batch_size=7)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "float.onnx")


def test_the_same_logits_for_any_shape(model, batches, exported):
    running = session(exported)
    torch.testing.assert_close(
        run_onnx(running, batches), logits_of(model, batches), rtol=1e-4, atol=1e-5
    )


def test_int8_is_close_and_smaller(model, batches, exported, tmp_path):
    import onnx

    exact = logits_of(model, batches)
    small = quantize_weights(exported, tmp_path / "small.onnx")
    whole = quantize_whole(exported, tmp_path / "whole.onnx", batches)
    for path in (small, whole):
        logits = run_onnx(session(path), batches)
        assert 0 < float((logits - exact).abs().max()) < 0.5
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert "MatMulInteger" in kinds and "QLinearConv" not in kinds
    # Twelve linear layers and the head; the tables stay in float32.
    weights = onnx.load(small).graph.initializer
    assert sum(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2 for w in weights) == 13
    assert small.stat().st_size < exported.stat().st_size


def test_what_is_refused(model, exported, tmp_path):
    with pytest.raises(CalibrationError, match="no calibration texts"):
        quantize_whole(exported, tmp_path / "whole.onnx", [])
    with pytest.raises(ModelError, match="training mode"):
        export_onnx(small_classifier().train(), tmp_path / "x.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime"):
        session(broken)
    with pytest.raises(ModelError, match="ONNX Runtime"):
        session(tmp_path / "missing.onnx")
