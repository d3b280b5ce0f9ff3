"""Configs and files that were tampered with: a reader answers with a typed error, or reads.

A hostile folder may not crash a reader with another error, hang it, or make it allocate what it
claims.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.checkpoints import bare, random_layer, scheme, tiny_checkpoint
from labkit.core.errors import LabkitError
from labkit.formats import awq, compressed_tensors, gptq, load
from labkit.models.quantized import model_from

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 130)
    | st.floats()
    | st.sampled_from(["", "gptq", "gptq_v2", "awq", "gemm", "group", "channel", "float", "int"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("configs")
    layer = random_layer(32, 64, scheme(4, False, 32))
    for name, fmt in (("gptq", gptq), ("awq", awq), ("ct", compressed_tensors)):
        fmt.save(bare(layer), place / name)
    gptq.save(tiny_checkpoint(scheme(4, True, 32)), place / "model")
    return {
        name: (place / name, json.loads((place / name / "config.json").read_text()))
        for name in ("gptq", "awq", "ct", "model")
    }


@pytest.fixture(scope="module")
def whole_files(folders):
    return {name: (folders[name][0] / "model.safetensors").read_bytes() for name in folders}


def keys(node, path=()):
    """The places of all values in nested objects."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys(value, (*path, key))


def tampered(data, config):
    config = json.loads(json.dumps(config))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(keys(config))
        if not places:
            break
        *path, last = data.draw(st.sampled_from(places))
        node = config
        for key in path:
            node = node[key]
        if data.draw(st.booleans()):
            node[last] = data.draw(ANYTHING)
        else:
            node.pop(last, None)
    return config


def read_or_refuse(folder, config, through) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    try:
        through(folder)
    except LabkitError as error:
        assert str(error)


def layers_of(folder):
    return [layer.dequantize() for layer in load(folder).layers.values()]


def _check(folders, data, names):
    folder, config = folders[data.draw(st.sampled_from(names))]
    config = tampered(data, config)
    # The other file that says the same would answer for what was taken out.
    (folder / "quantize_config.json").unlink(missing_ok=True)
    read_or_refuse(folder, config, layers_of)


QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=100)
@given(data=st.data())
def test_a_tampered_config_is_read_or_refused(folders, data):
    _check(folders, data, ["gptq", "awq", "ct"])


SWAPS = [b"I32", b"I64", b"F16", b"F32", b"U8", b"qweight", b"qzeros", b"scales", b"g_idx"]
SWAPS += [b"weight_packed", b"weight_scale", b"weight_shape", b"32", b"64", b"[4,", b"[2,", b"0"]


@settings(QUIET, max_examples=100)
@given(data=st.data())
def test_a_tampered_file_is_read_or_refused(folders, whole_files, data):
    """Names, types and shapes of the header exchanged for others that it may hold."""
    name = data.draw(st.sampled_from(["gptq", "awq", "ct"]))
    folder, config = folders[name]
    whole = whole_files[name]
    length = int.from_bytes(whole[:8], "little")
    header, rest = whole[8 : 8 + length], whole[8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        old, new = data.draw(st.sampled_from(SWAPS)), data.draw(st.sampled_from(SWAPS))
        header = header.replace(old, new, data.draw(st.integers(1, 3)))
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + rest)
    try:
        read_or_refuse(folder, config, layers_of)
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
@settings(QUIET, max_examples=1_000)
@given(data=st.data())
def test_many_tampered_configs(folders, data):
    _check(folders, data, ["gptq", "awq", "ct"])


@settings(QUIET, max_examples=25)
@given(data=st.data())
def test_a_model_of_a_tampered_config_is_made_or_refused(folders, data):
    folder, config = folders["model"]
    changed = tampered(data, {k: v for k, v in config.items() if k != "quantization_config"})
    changed |= {"quantization_config": config["quantization_config"]}
    read_or_refuse(folder, changed, lambda place: model_from(load(place)))
