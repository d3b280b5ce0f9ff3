"""AWQ GEMM: bit-exact both ways, the interleaved nibbles, and what the format cannot hold."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.checkpoints import bare, random_layer, same_checkpoint, same_layer, scheme
from labkit.core.errors import FormatError
from labkit.core.tensor import QuantizedTensor
from labkit.formats import Checkpoint, awq, detect
from labkit.formats.reading import open_tensors

NAME = "model.layers.0.mlp.up_proj"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    group=st.sampled_from([None, 16, 32, 64]),
    rows=st.sampled_from([8, 40, 96]),
    columns=st.sampled_from([64, 192]),
)
def test_what_is_written_is_read_back(tmp_path_factory, group, rows, columns):
    path = tmp_path_factory.mktemp("awq") / "model"
    ours = bare(*(random_layer(rows, columns, scheme(4, False, group), seed) for seed in (0, 1)))
    awq.save(ours, path)
    assert detect(path) == "awq"
    assert same_checkpoint(ours, awq.load(path))


def test_the_order_of_the_nibbles(tmp_path):
    """Columns 0..7 of a word, from its lowest bits: 0 2 4 6 1 3 5 7."""
    codes = torch.arange(8, dtype=torch.uint8).reshape(8, 1).repeat(1, 32)
    zeros = (7 - torch.arange(8, dtype=torch.int32)).reshape(8, 1)
    layer = QuantizedTensor(
        codes, torch.ones(8, 1, dtype=torch.float16), zeros, scheme(4, False, None)
    )
    awq.save(bare(layer), tmp_path / "m")
    stored = open_tensors(tmp_path / "m")
    assert stored[f"{NAME}.qweight"].shape == (32, 1)
    assert set(stored[f"{NAME}.qweight"].flatten().tolist()) == {0x75316420}
    assert stored[f"{NAME}.qzeros"].tolist() == [[0x02461357]]


def test_zero_points_of_zero_are_no_trap_here(tmp_path):
    layer = random_layer(32, 64, scheme(4, False, 32))
    zeros = torch.zeros_like(layer.zero_point)
    layer = QuantizedTensor(layer.codes, layer.scale, zeros, layer.scheme)
    awq.save(bare(layer), tmp_path / "m")
    assert same_layer(layer, awq.load(tmp_path / "m").layers[NAME])


def test_a_symmetric_layer_has_the_same_values(tmp_path):
    layer = random_layer(32, 64, scheme(4, True, 32))
    awq.save(bare(layer), tmp_path / "m")
    read = awq.load(tmp_path / "m").layers[NAME]
    assert torch.equal(read.dequantize(), layer.dequantize())
    assert set(read.zero_point.flatten().tolist()) == {8}


def test_what_the_format_cannot_hold(tmp_path):
    def refuse(checkpoint, message):
        with pytest.raises(FormatError, match=message):
            awq.save(checkpoint, tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    refuse(bare(random_layer(32, 64, scheme(8, False, None))), "4 bits")
    refuse(bare(random_layer(36, 64, scheme(4, False, None))), "multiple of 8")
    refuse(bare(random_layer(32, 64, scheme(4, False, 32), shuffled=True)), "no act-order")


def test_a_layer_left_out_of_all_blocks_is_named(tmp_path):
    layer = random_layer(32, 64, scheme(4, False, 32))
    names = [f"model.layers.{i}.mlp" for i in (0, 1)]
    tensors = {f"{name}.down_proj.weight": torch.ones(64, 32) for name in names}
    layers = {f"{name}.up_proj": layer for name in names}
    awq.save(Checkpoint({"model_type": "llama"}, tensors, layers), tmp_path / "m")
    stated = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert stated["modules_to_not_convert"] == ["mlp.down_proj"]
    layers[f"{names[1]}.down_proj"] = random_layer(64, 32, scheme(4, False, 32))
    del tensors[f"{names[1]}.down_proj.weight"]
    with pytest.raises(FormatError, match="out of all blocks or of none"):
        awq.save(Checkpoint({"model_type": "llama"}, tensors, layers), tmp_path / "n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "labkit reads 4"),
        ({"group_size": 64}, "belong together"),
        ({"group_size": 48}, "does not divide"),
        ({"group_size": "32"}, "Expected an integer"),
        ({"version": "gemv"}, "labkit reads 'gemm'"),
        ({"zero_point": False}, "labkit reads True"),
    ],
)
def test_config_that_disagrees_with_the_tensors(tmp_path, changes, message):
    awq.save(bare(random_layer(32, 128, scheme(4, False, 32))), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        dict(awq.load(tmp_path / "m").layers)


def test_the_older_config_file(tmp_path):
    """AutoAWQ before 0.1.8 wrote quant_config.json, with other names."""
    ours = bare(random_layer(32, 64, scheme(4, False, 32)))
    awq.save(ours, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    older = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
    (tmp_path / "m" / "quant_config.json").write_text(json.dumps(older))
    assert detect(tmp_path / "m") == "awq"
    assert same_checkpoint(ours, awq.load(tmp_path / "m"))
