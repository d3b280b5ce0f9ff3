"""The study of QLoRA: a short run of it, and what was recorded."""

from __future__ import annotations

import math

import pytest

from labkit.study import qlora, results

LABELS = [
    "FP32",
    "NF4 base",
    "NF4 base and adapters",
    "bitsandbytes' base and adapters",
    "adapters on the FP32 model",
    "merged, in floats",
    "merged, NF4",
    "merged, Q4_K",
    "merged, GPTQ int4",
]
CURVE_GAP = 1e-2  # of a recorded loss, over all steps: rounding errors grow from step to step


def rows_of(result: dict) -> dict[str, dict]:
    rows = {row["label"]: row for row in result["rows"]}
    assert list(rows) == LABELS
    return rows


def test_kept_is_a_share_of_the_gain_in_nats():
    def row(label: str, nats: float) -> dict:
        return {"label": label, "perplexity": {qlora.NAME: math.exp(nats)}}

    rows = [row("FP32", 3.9), row(qlora.BEFORE, 4.0), row(qlora.TUNED, 3.0), row("again", 3.25)]
    shares = [qlora.kept(rows, one) for one in rows]
    assert shares[:2] == [None, None]
    assert shares[2:] == pytest.approx([1.0, 0.75])


def test_a_quick_run_has_every_row():
    found = qlora.run(quick=True, tell=lambda text: None)
    rows = rows_of(found)
    assert len(found["curves"]["labkit"]) == len(found["curves"]["bitsandbytes"]) == 3
    assert found["curve_gap"] < 1e-4
    for name, value in rows[qlora.TUNED]["perplexity"].items():
        assert rows[qlora.MERGED]["perplexity"][name] == pytest.approx(value, rel=1e-3)
        assert rows[LABELS[3]]["perplexity"][name] == pytest.approx(value, rel=1e-3)
    assert rows["merged, NF4"]["bytes"] < rows[qlora.TUNED]["bytes"] < rows["FP32"]["bytes"]
    assert rows["merged, NF4"]["bytes"] == rows["NF4 base"]["bytes"]
    assert all(label in qlora.readme_block(found) for label in LABELS)


def test_what_was_recorded():
    """The domain is learned, the bases agree, merging costs nothing, rounding again a little."""
    found = results.load("qlora")
    rows = rows_of(found)
    new = {label: row["perplexity"][qlora.NAME] for label, row in rows.items()}
    assert new["NF4 base"] > new["FP32"]
    assert new[qlora.TUNED] < 0.85 * new["FP32"]
    assert found["curve_gap"] < CURVE_GAP
    assert new[LABELS[3]] == pytest.approx(new[qlora.TUNED], rel=CURVE_GAP)
    assert new[qlora.MERGED] == pytest.approx(new[qlora.TUNED], rel=1e-3)
    for label in LABELS[6:]:
        assert new[qlora.MERGED] * 0.99 < new[label] < new["FP32"]
        assert 0.5 < rows[label]["kept"] < 1.05
        assert rows[label]["bytes"] < rows[qlora.TUNED]["bytes"]
    assert found["adapters"]["share"] < 0.1
