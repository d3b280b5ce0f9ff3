"""Where a figure comes from: enough of the machine to know what its kernels could use."""

from __future__ import annotations

import json

import pytest

from labkit.environment.processor import INSTRUCTIONS, usable_cores
from labkit.evaluate import record
from labkit.evaluate.provenance import made_with


def test_the_machine_is_described():
    made = made_with()
    versions, machine = {"python", "torch", "platform"}, {"cpu", "design", "cores", "instructions"}
    assert made.keys() >= versions | machine | {"threads"}
    assert made["cores"] == usable_cores() >= 1
    assert set(made["instructions"]) <= set(INSTRUCTIONS)
    assert json.loads(json.dumps(made)) == made


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "bench.json"
    record.save(path, "labkit bench x", {"rows": [1]})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        record.save(path, "labkit bench x", {"rows": [float("inf")]})
    assert path.read_bytes() == before
    assert json.loads(before)["command"] == "labkit bench x"
