"""The lab on images beside PyTorch's and ONNX Runtime's own quantizers."""

from __future__ import annotations

import json

import pytest
import torch
from image_nets import calibrated, digits_net

from labkit.core.metrics import sqnr_db
from labkit.evaluate.images import accuracy_of, logits_of
from labkit.study import images as study
from labkit.study.images_peers import onnxruntime_int8, torch_int8
from labkit.study.images_speed import sizes
from labkit.training.convert import convert
from labkit.training.onnx_export import export_float


@pytest.fixture(scope="module")
def lab():
    """The float net, the digits, 200 images to calibrate with, and our integers' logits."""
    net, data = digits_net()
    pixels = data.calibration.first(200).pixels()
    prepared = calibrated(net, pixels)
    return net, data, pixels, prepared, logits_of(convert(prepared).model, data.test)


def compare(lab, theirs):
    """Ours less theirs, its standard error; and the logits of both against the float net's, dB."""
    net, data, _, _, ours = lab
    given, wanted = logits_of(theirs, data.test), logits_of(net, data.test)
    change, error = accuracy_of(ours, data.test).minus(accuracy_of(given, data.test))
    agreement = float((ours.argmax(1) == given.argmax(1)).double().mean())
    return change, error, agreement, sqnr_db(wanted, ours), sqnr_db(wanted, given)


@pytest.mark.parametrize(("backend", "own"), [("x86", True), ("onednn", True), ("onednn", False)])
def test_as_good_as_pytorchs_backend_with_the_same_images(lab, backend, own):
    before = torch.backends.quantized.engine
    change, error, agreement, ours, theirs = compare(lab, torch_int8(lab[0], lab[2], backend, own))
    assert torch.backends.quantized.engine == before
    assert change >= -2 * max(error, 1 / len(lab[1].test))
    assert agreement > 0.97
    assert ours > theirs - 1.5  # decibels; nearer the float net, or as near


@pytest.mark.parametrize("method", ["MinMax", "Percentile"])
def test_as_good_as_onnx_runtimes_own_quantizer(lab, tmp_path, method):
    export_float(lab[3], lab[1].shape, tmp_path / "float.onnx")
    theirs = onnxruntime_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", lab[2], method)
    change, error, agreement, ours, given = compare(lab, theirs)
    assert change >= -2 * max(error, 1 / len(lab[1].test))
    assert agreement > 0.97
    assert ours > given - 1.5


def test_integers_take_a_fourth_of_the_floats_and_little_more(lab):
    found = sizes(lab[3], lab[1].shape)
    layers = convert(lab[3]).layers.values()
    weights = sum(layer.codes.numel() for layer in layers)
    channels = sum(layer.scale.numel() for layer in layers)
    assert found["float32"] == 4 * (weights + channels)  # a bias for each output channel
    assert found["integers"] == weights + 4 * channels + 4 * channels
    assert found["integers_onnx"] < found["float32_onnx"] / 2


@pytest.mark.slow
def test_the_quick_study_gives_every_table():
    told: list[str] = []
    result = study.run(quick=True, tell=told.append)
    assert told
    json.dumps(result, allow_nan=False)
    block = study.readme_block(result)
    for row in (*result["engines"], *result["latency"]):
        assert row["engine"] in block
    assert "W8A8 per channel | minmax" in block


FIGURES = {"accuracy": 0.97, "error": 0.006, "change": -0.0125, "change_error": 0.004}


def test_the_readme_block_is_made_of_the_record_alone():
    ptq = {"weights": 4, "inputs": 8, "granularity": "tensor", "range": "kl", **FIGURES}
    engine = {"engine": "ours", **FIGURES, "logits_db": 36.95}
    speed = {"net": "digits", "engine": "ours", "batch": 1, "ms": 0.12345}
    result = {
        "float": FIGURES,
        "images": {"train": 1000, "test": 797},
        "ptq": [{**ptq, "images": count} for count in (50, 200, 1000)],
        "qat": [
            {"setting": "W2", "steps": 7, "before": FIGURES, "after": {**FIGURES, "change": 0.003}}
        ],
        "engines": [engine],
        "latency": [speed, {**speed, "batch": 64, "ms": 7.0}],
    }
    block = study.readme_block(result)
    assert "97.0% ± 0.6% of 797 test images" in block
    assert "| W4A8 per tensor | kl | -1.2 ± 0.4 | -1.2 ± 0.4 | -1.2 ± 0.4 |" in block
    assert "| trained 7 steps |" in block
    assert "| W2 | -1.2 ± 0.4 | +0.3 ± 0.4 |" in block
    assert "| ours | 97.0% | 37.0 dB |" in block
    assert "| ours | 0.123 | 7 |" in block
