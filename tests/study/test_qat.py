"""The study of quantization-aware training: a short run of it, and what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.study import qat, results

CARD = Path(__file__).resolve().parents[2] / "data" / "reference-lm" / "card.json"


def test_the_share_of_training_is_the_card_s():
    assert json.loads(CARD.read_text())["tokens"] == qat.TRAINED_TOKENS
    longest = max(plan.steps for plan in qat.RUNS)
    assert longest * qat.ROWS * qat.LENGTH <= 0.05 * qat.TRAINED_TOKENS


def test_closed_is_a_share_of_the_gap():
    assert qat.closed(exact=10, before=20, after=20) == 0
    assert qat.closed(exact=10, before=20, after=14) == pytest.approx(0.6)
    assert qat.closed(exact=10, before=20, after=9) > 1


def test_a_quick_run_starts_at_gptq():
    found = qat.run(quick=True, tell=lambda text: None)
    (row,) = found["runs"]
    assert row["curve"][0]["step"] == 0
    assert row["curve"][-1]["step"] == row["steps"] == len(row["loss"]) == 4
    for domain in qat.DOMAINS:
        assert row["fp32"][domain] < row["gptq"][domain]
        assert row["curve"][0][domain] == pytest.approx(row["gptq"][domain])
        assert row["curve"][-1][domain] == pytest.approx(row["qat"][domain])
    assert row["what"] in qat.readme_block(found)


def test_what_was_recorded_reaches_the_targets():
    """At 3 and 2 bits at least 60 % of GPTQ's gap; at W4A8 within 1 % of the float model."""
    recorded = {row["what"]: row for row in results.load("qat")["runs"]}
    assert list(recorded) == [plan.what for plan in qat.RUNS]
    for row in recorded.values():
        assert row["share_of_training"] <= 0.05
        for domain in qat.DOMAINS:
            if row["inputs"] is None:
                assert row["closed"][domain] >= 0.6
            else:
                assert row["qat"][domain] <= 1.01 * row["fp32"][domain]
