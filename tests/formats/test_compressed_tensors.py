"""compressed-tensors: INT4, W8A8 and FP8, bit-exact both ways."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.checkpoints import bare, random_layer, same_checkpoint, scheme
from labkit.core.errors import FormatError, SchemeError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.scheme import QuantScheme
from labkit.formats import InputQuantization, compressed_tensors, detect
from labkit.formats.reading import open_tensors
from labkit.formats.writing import save_tensors

NAME = "model.layers.0.mlp.up_proj"
TOKEN = InputQuantization("int")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 8, 32]),
    rows=st.sampled_from([5, 8, 40]),
    columns=st.sampled_from([32, 64, 96]),
    shuffled=st.booleans(),
)
def test_packed_integers(tmp_path_factory, bits, symmetric, group, rows, columns, shuffled):
    path = tmp_path_factory.mktemp("ct") / "model"
    shuffled = shuffled and group is not None and group < columns
    what = scheme(bits, symmetric, group)
    ours = bare(*(random_layer(rows, columns, what, seed, shuffled=shuffled) for seed in (0, 1)))
    compressed_tensors.save(ours, path)
    assert detect(path) == "compressed-tensors"
    assert same_checkpoint(ours, compressed_tensors.load(path))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_int8_with_inputs_by_token(tmp_path, symmetric, granularity):
    what = QuantScheme(8, symmetric, granularity, narrow_range=not symmetric)
    layer = random_layer(24, 64, scheme(8, symmetric, None))
    if granularity == "tensor":
        zeros = None if symmetric else layer.zero_point[:1]
        layer = replace(layer, scale=layer.scale[:1], zero_point=zeros, scheme=what)
    ours = replace(bare(layer), inputs={NAME: TOKEN})
    compressed_tensors.save(ours, tmp_path / "m")
    read = compressed_tensors.load(tmp_path / "m")
    assert same_checkpoint(ours, read)
    assert (read.inputs[NAME].kind, read.inputs[NAME].granularity) == ("int", "token")
    assert open_tensors(tmp_path / "m")[f"{NAME}.weight"].dtype == torch.int8


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("measured", [True, False])
def test_fp8(tmp_path, granularity, measured):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=g)
    layer = Float8Tensor.quantize(weight, granularity)
    scale = torch.tensor([0.125]) if measured else None
    inputs = {NAME: InputQuantization("float", "tensor" if measured else "token", scale)}
    compressed_tensors.save(replace(bare(layer), inputs=inputs), tmp_path / "m")
    read = compressed_tensors.load(tmp_path / "m")
    theirs = read.layers[NAME]
    assert torch.equal(theirs.codes.view(torch.uint8), layer.codes.view(torch.uint8))
    assert torch.equal(theirs.scale, layer.scale)
    assert (read.inputs[NAME].scale is None) == (not measured)
    x = torch.randn(2, 3, 64, generator=g)
    assert torch.equal(read.inputs[NAME].apply(x), inputs[NAME].apply(x))


def test_measured_inputs_are_clipped():
    x = torch.tensor([[500.0, 1.0, -500.0]])
    one = torch.tensor([1.0])
    assert InputQuantization("float", "tensor", one).apply(x).tolist() == [[448.0, 1.0, -448.0]]
    assert InputQuantization("int", "tensor", one).apply(x).tolist() == [[127.0, 1.0, -128.0]]


def test_a_scale_for_each_token_cannot_be_measured():
    with pytest.raises(SchemeError, match="one number"):
        InputQuantization("int", "token", torch.ones(1))
    with pytest.raises(SchemeError, match="one number"):
        InputQuantization("int", "tensor", torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "marlin-24"}, "labkit reads"),
        ({"config_groups": {}}, "config_groups"),
        ({"config_groups": {"a": {}, "b": {}}}, "share one scheme"),
        ({"config_groups": {"a": []}}, "no object"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "labkit reads"),
        ({"ignore": [NAME]}, "says that it is not"),
        ({"weights": {"num_bits": 8}}, "belong together"),
        ({"weights": {"num_bits": 3}}, "labkit reads"),
        ({"weights": {"group_size": 64}}, "belong together"),
        ({"weights": {"group_size": 2.0}}, "Expected an integer"),
        ({"weights": {"strategy": "channel", "group_size": None}}, "belong together"),
        ({"weights": {"symmetric": False}}, "no tensor"),
        ({"weights": {"type": "float"}}, "labkit reads"),
        ({"weights": {"dynamic": True}}, "labkit reads"),
    ],
)
def test_config_that_disagrees_with_the_tensors(tmp_path, changes, message):
    compressed_tensors.save(bare(random_layer(32, 128, scheme(4, True, 32))), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["weights"] |= changes.pop("weights", {})
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        dict(compressed_tensors.load(tmp_path / "m").layers)


@pytest.mark.parametrize("shape", [[32, 129], [32, 2**40], [33, 128], [0, 128], [-1, 128]])
def test_a_weight_shape_that_lies(tmp_path, shape):
    compressed_tensors.save(bare(random_layer(32, 128, scheme(4, True, 32))), tmp_path / "m")
    place = tmp_path / "m" / "model.safetensors"
    tensors = dict(open_tensors(place)) | {f"{NAME}.weight_shape": torch.tensor(shape)}
    save_tensors(place, tensors)
    with pytest.raises(FormatError):
        compressed_tensors.load(tmp_path / "m")


def test_what_the_formats_cannot_hold(tmp_path):
    def refuse(checkpoint, message):
        with pytest.raises(FormatError, match=message):
            compressed_tensors.save(checkpoint, tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    integers = random_layer(32, 64, scheme(4, True, 32))
    floats = Float8Tensor.quantize(torch.ones(32, 64))
    refuse(bare(random_layer(32, 64, scheme(3, True, 32))), "4 or 8 bits")
    refuse(bare(integers, floats), "integer matrices")
    refuse(replace(bare(integers), inputs={NAME: TOKEN}), "8 bits")
    refuse(replace(bare(floats), inputs={NAME: TOKEN}), "INT8 with INT8")
    refuse(replace(bare(floats, floats), inputs={NAME: TOKEN}), "some of the layers")
    single = Float8Tensor.quantize(torch.ones(32, 64), "tensor")
    refuse(bare(floats, single), "Choose one")
