"""The study beside torchao: a short run of it, and what was recorded."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.core.errors import PeerMissingError
from labkit.evaluate.perplexity import perplexity
from labkit.models.loading import BUNDLED, load
from labkit.study import results, torchao

RESULT = {
    "steps": 60,
    "batch": [4, 128],
    "float": {"stdlib-prose": 33.0, "stdlib-code": 11.0},
    "rows": [
        {
            "case": "2 bits",
            "library": library,
            "setting": setting,
            "lr": lr,
            "start": {"stdlib-prose": 90.0, "stdlib-code": 80.0},
            "perplexity": {"stdlib-prose": prose, "stdlib-code": 12.0},
        }
        for library, setting, lr, prose in (
            ("torchao", "equal", 1e-4, 50.0),
            ("torchao", "equal", 1e-3, 45.0),
            ("labkit", "equal", 1e-3, 44.0),
            ("labkit", "recommended", 1e-3, 36.0),
        )
    ],
}


def test_the_block_shows_the_better_of_their_rates():
    lines = torchao.readme_block(RESULT).splitlines()
    assert "60 steps of 4 x 128 tokens" in lines[0] and "33.00 / 11.00" in lines[0]
    cells = "90.00 / 80.00 | 45.00 / 12.00 | 44.00 / 12.00 | 36.00 / 12.00"
    assert lines[-1] == f"| 2 bits | {cells} |"


def test_without_the_environment_it_says_so(monkeypatch, tmp_path):
    from labkit.peers import environments

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.delenv("LABKIT_PEERS", raising=False)
    with pytest.raises(PeerMissingError, match="make peers"):
        torchao.run(quick=True)


def test_both_sides_score_the_same_windows():
    model, tokenizer = load(BUNDLED)
    size = torchao.Size(heldout_tokens=512)
    rows = torchao._windows(tokenizer, "stdlib-prose", size)
    assert rows.shape == (2, torchao.CONTEXT + 1)
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    text = torchao.load_corpus("stdlib-prose", "heldout").text
    expected = perplexity(model, tokenizer, text, torchao.CONTEXT, max_tokens=512)
    assert expected.tokens == rows[:, 1:].numel()
    assert float(loss.exp()) == pytest.approx(expected.value, rel=1e-4)


def test_what_was_recorded():
    """Over both domains: at equal settings as good as torchao within 1 %, at our best no worse."""
    record = results.load("torchao")
    cases = {row["case"] for row in record["rows"]}
    assert cases == {case.name for case in torchao.CASES}
    for case in cases:
        rows = [row for row in record["rows"] if row["case"] == case]
        nats = {"torchao": [], "equal": [], "recommended": []}
        for row in rows:
            kind = row["setting"] if row["library"] == "labkit" else "torchao"
            losses = [math.log(row["perplexity"][domain]) for domain in torchao.CORPORA]
            nats[kind].append(sum(losses) / len(losses))
        best = {kind: min(found) for kind, found in nats.items()}
        assert best["equal"] <= best["torchao"] + 0.01
        assert min(best["equal"], best["recommended"]) <= best["torchao"]
