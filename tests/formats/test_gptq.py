"""GPTQ v1 and v2: bit-exact both ways, the words that are on the disk, and the trap of v1."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.checkpoints import bare, random_layer, same_checkpoint, same_layer, scheme
from labkit.core.errors import FormatError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.formats import detect, gptq
from labkit.formats.reading import open_tensors
from labkit.formats.writing import save_tensors


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bits=st.sampled_from(gptq.BITS),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 16, 32, 64]),
    rows=st.sampled_from([32, 96]),
    columns=st.sampled_from([64, 192]),
    version=st.sampled_from(gptq.VERSIONS),
    shuffled=st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory, bits, symmetric, group, rows, columns, version, shuffled
):
    path = tmp_path_factory.mktemp("gptq") / "model"
    what = scheme(bits, symmetric, group)
    shuffled = shuffled and group is not None and group < columns
    ours = bare(*(random_layer(rows, columns, what, seed, shuffled=shuffled) for seed in (0, 1)))
    gptq.save(ours, path, version=version)
    assert detect(path) == "gptq"
    assert same_checkpoint(ours, gptq.load(path))
    stated = json.loads((path / "quantize_config.json").read_text())
    assert stated == json.loads((path / "config.json").read_text())["quantization_config"]
    assert stated["desc_act"] == shuffled


def test_the_words_on_the_disk(tmp_path):
    """Symmetric zero-points are 0x77777777 in v1 and 0x88888888 in v2; codes run along in."""
    what = scheme(4, True, None)
    codes = (torch.arange(32 * 32).reshape(32, 32) % 16 - 8).to(torch.int8)
    layer = QuantizedTensor(codes, torch.ones(32, 1, dtype=torch.float16), None, what)
    words = {"gptq": 0x77777777, "gptq_v2": 0x88888888 - 2**32}
    for version, word in words.items():
        gptq.save(bare(layer), tmp_path / version, version=version)
        stored = open_tensors(tmp_path / version)
        assert set(stored["model.layers.0.mlp.up_proj.qzeros"].flatten().tolist()) == {word}
        qweight = stored["model.layers.0.mlp.up_proj.qweight"]
        assert qweight.shape == (4, 32)
        assert [int(qweight[0, 0]) >> 4 * i & 15 for i in range(8)] == list(range(8))


def test_three_bits_lie_across_words(tmp_path):
    """AutoGPTQ's layout: the 11th code has its low 2 bits in word 0 and its high one in word 1."""
    what = scheme(3, False, None)
    codes = torch.zeros(32, 32, dtype=torch.uint8)
    codes[:, 10] = 0b101
    zeros = torch.ones(32, 1, dtype=torch.int32)
    layer = QuantizedTensor(codes, torch.ones(32, 1, dtype=torch.float16), zeros, what)
    gptq.save(bare(layer), tmp_path / "m")
    column = open_tensors(tmp_path / "m")["model.layers.0.mlp.up_proj.qweight"][:, 0].tolist()
    assert column == [0b01 << 30, 0b1, 0]


def _with_a_zero(bits: int) -> QuantizedTensor:
    layer = random_layer(32, 64, scheme(bits, False, 32))
    zeros = layer.zero_point.clone()
    zeros[5, 1] = 0
    return QuantizedTensor(layer.codes, layer.scale, zeros, layer.scheme)


@pytest.mark.parametrize("bits", gptq.BITS)
def test_the_zero_point_trap(tmp_path, bits):
    """v1 stores z - 1: a zero-point of 0 is refused by name, and v2 holds it."""
    layer = _with_a_zero(bits)
    with pytest.raises(FormatError, match=r"1 zero-points of 0.*gptq_v2") as caught:
        gptq.save(bare(layer), tmp_path / "v1")
    assert "model.layers.0.mlp.up_proj" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    gptq.save(bare(layer), tmp_path / "v2", version="gptq_v2")
    assert same_layer(layer, gptq.load(tmp_path / "v2").layers["model.layers.0.mlp.up_proj"])


@pytest.mark.parametrize("bits", gptq.BITS)
def test_the_zero_point_trap_in_a_file_of_others(tmp_path, bits):
    """What a writer that falls into the trap leaves: readers take it for 0, or for 2^bits."""
    gptq.save(bare(_with_a_zero(bits)), tmp_path / "m", version="gptq_v2")
    _restate(tmp_path / "m", checkpoint_format="gptq")
    place = tmp_path / "m" / "model.safetensors"
    tensors = dict(open_tensors(place))
    stored = tensors["model.layers.0.mlp.up_proj.qzeros"]
    stored.fill_(-1)  # each zero-point is 2^bits - 1
    save_tensors(place, tensors)
    checkpoint = gptq.load(tmp_path / "m")
    with pytest.raises(FormatError, match=f"some as {2**bits}"):
        checkpoint.layers["model.layers.0.mlp.up_proj"]


def _restate(path, **changes):
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "belong together"),
        ({"bits": 3}, "no whole number|belong together"),
        ({"bits": 5}, "2, 3, 4 or 8"),
        ({"bits": "4"}, "Expected an integer"),
        ({"bits": True}, "Expected an integer"),
        ({"group_size": 64}, "belong together"),
        ({"group_size": -1}, "belong together"),
        ({"group_size": 48}, "does not divide"),
        ({"group_size": 0}, "does not divide"),
        ({"group_size": None}, "Expected an integer"),
        ({"checkpoint_format": "marlin"}, "labkit reads"),
        ({"quant_method": "gptq", "dynamic": {"+:x": {}}}, "labkit reads"),
        ({"sym": 1}, "Expected a bool"),
    ],
)
def test_config_that_disagrees_with_the_tensors(tmp_path, changes, message):
    gptq.save(bare(random_layer(32, 128, scheme(4, False, 32))), tmp_path / "m")
    _restate(tmp_path / "m", **changes)
    with pytest.raises(FormatError, match=message):
        dict(gptq.load(tmp_path / "m").layers)


def test_symmetric_by_name_alone(tmp_path):
    gptq.save(bare(random_layer(32, 64, scheme(4, False, 32))), tmp_path / "m")
    _restate(tmp_path / "m", sym=True)
    with pytest.raises(FormatError, match="other than 8, and config"):
        dict(gptq.load(tmp_path / "m").layers)


@pytest.mark.parametrize("bad", [-1, 2, 10**6])
def test_a_group_that_is_not_there(tmp_path, bad):
    gptq.save(bare(random_layer(32, 64, scheme(4, True, 32), shuffled=True)), tmp_path / "m")
    place = tmp_path / "m" / "model.safetensors"
    tensors = dict(open_tensors(place))
    tensors["model.layers.0.mlp.up_proj.g_idx"][7] = bad
    save_tensors(place, tensors)
    with pytest.raises(FormatError, match="g_idx"):
        dict(gptq.load(tmp_path / "m").layers)


def test_what_the_format_cannot_hold(tmp_path):
    def refuse(layer, message):
        with pytest.raises(FormatError, match=message):
            gptq.save(bare(layer), tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    refuse(random_layer(32, 64, scheme(5, True, None)), "2, 3, 4 or 8")
    refuse(random_layer(40, 64, scheme(4, True, None)), "multiples of 32")
    refuse(random_layer(32, 80, scheme(4, True, 16)), "multiples of 32")
    layer = random_layer(32, 64, scheme(4, True, None))
    precise = QuantizedTensor(layer.codes, layer.scale.float() * 1.0001, None, layer.scheme)
    refuse(precise, "float16 cannot hold")
    other = random_layer(32, 64, QuantScheme(4, True, "group", 32, narrow_range=False))
    with pytest.raises(FormatError, match="the ones before it"):
        gptq.save(bare(layer, other), tmp_path / "m")
    with pytest.raises(FormatError, match="no quantized layers"):
        gptq.save(bare(), tmp_path / "m")


def test_float32_scales_that_float16_holds_are_kept(tmp_path):
    layer = random_layer(32, 64, scheme(4, True, None))
    wide = QuantizedTensor(layer.codes, layer.scale.float(), None, layer.scheme)
    gptq.save(bare(wide), tmp_path / "m")
    assert same_layer(layer, gptq.load(tmp_path / "m").layers["model.layers.0.mlp.up_proj"])


def test_a_narrow_grid_keeps_its_codes(tmp_path):
    """The file does not say that -8 is never used; the numbers are the same."""
    narrow = random_layer(32, 64, QuantScheme(4, True, "channel"))
    gptq.save(bare(narrow), tmp_path / "m")
    read = gptq.load(tmp_path / "m").layers["model.layers.0.mlp.up_proj"]
    assert torch.equal(read.codes, narrow.codes) and torch.equal(read.scale, narrow.scale)
