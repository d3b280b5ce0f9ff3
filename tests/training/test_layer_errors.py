from __future__ import annotations

import pytest
from image_nets import calibrated, random_pixels, small_net

from labkit.core.errors import CalibrationError
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.training.fake_quant import FakeQuant
from labkit.training.layer_errors import layer_errors
from labkit.training.static import prepare_static, without_rounding

PIXELS, OTHERS = random_pixels(32), random_pixels(16, seed=9)


def test_rows_come_in_the_order_of_the_calls_and_end_with_the_logits():
    net = small_net()
    prepared = calibrated(net, PIXELS)
    rows = layer_errors(prepared, OTHERS)
    assert [row.name for row in rows] == [
        "conv",
        *("stages.0.conv1", "stages.0.conv2"),
        *("stages.1.conv1", "stages.1.conv2", "stages.1.shortcut.0"),
        "head",
    ]
    wanted = without_rounding(prepared)(OTHERS)
    assert rows[-1].total_db == pytest.approx(sqnr_db(wanted, prepared(OTHERS)))
    assert rows[0].own_db == rows[0].total_db  # nothing before it is rounded
    assert all(0.99 < row.cosine <= 1 for row in rows)


def test_the_layer_that_is_rounded_hardest_is_the_one_whose_own_error_is_largest():
    prepared = calibrated(small_net(), PIXELS)
    before = {row.name: row for row in layer_errors(prepared, OTHERS)}
    prepared.stages[0].conv2.weight_quant = FakeQuant(QuantScheme(2))
    rows = {row.name: row for row in layer_errors(prepared, OTHERS)}
    assert min(rows.values(), key=lambda row: row.own_db).name == "stages.0.conv2"
    changed = {name for name, row in rows.items() if row.own_db != before[name].own_db}
    assert changed == {"stages.0.conv2"}
    later = ("stages.1.conv1", "stages.1.conv2", "head")
    assert all(rows[name].total_db < before[name].total_db for name in later)


def test_ranges_that_are_not_known_are_refused():
    with pytest.raises(CalibrationError, match="has seen nothing"):
        layer_errors(prepare_static(small_net()), OTHERS)
