"""The study of the encoder, whole but on a very small encoder; and what README gets from it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_classifier import small_classifier

from labkit.evaluate.classification import logits_of
from labkit.models.text_classifier import TextBatch, masked_mean
from labkit.study import encoder, encoder_mixed, encoder_training


class Hashing:
    """An id for each word, by its letters."""

    pad_token_id = 0

    def __call__(self, texts, truncation, max_length):
        rows = [[3 + sum(map(ord, word)) % 13 for word in text.split()] for text in texts]
        return {"input_ids": [[1, *row[: max_length - 2], 2] for row in rows]}


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            encoder, "text_classifier", lambda classes: (small_classifier(classes), Hashing())
        )
        said = []
        found = encoder.run(True, said.append)
        assert any("INT8" in line for line in said)
        return found


def test_every_table_is_there_and_is_json(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    assert {row["choice"] for row in again["sensitivity"]} == {"int4", "int8", "fp16", "w8a8"}
    assert all(row["kl"] >= 0 for row in again["sensitivity"])
    assert [row["batch"] for row in again["runtime"]["times"]] == [1] * 4 + [32] * 4
    assert {row["calibrated_on"] for row in again["calibration"]} == {
        "domain",
        "domain, 8 texts",
        "generic",
    }
    assert all(math.isfinite(loss) for row in again["qat"] for loss in row["loss"])


def test_allocations_obey_their_limits_and_use_the_right_layers(result):
    sizes = {row["what"]: row["bytes"] for row in result["allocations"]}
    assert sizes["int4 everywhere"] < sizes["int8 everywhere"] < sizes["fp16 everywhere"]
    mixed = [
        size for what, size in sizes.items() if what.startswith("mixed") and "down" not in what
    ]
    assert mixed == sorted(mixed) and mixed[0] < sizes["int8 everywhere"]
    kl = {row["layer"]: row["kl"] for row in result["sensitivity"] if row["choice"] == "int4"}
    assert result["ranking"] == sorted(kl, key=lambda name: -kl[name])


def test_onnx_answers_as_torch_did(result):
    rows = {row["what"]: row for row in result["runtime"]["answers"]}
    assert rows["ONNX float32"]["max_logit_error"] < 1e-4
    assert rows["ONNX INT8, MatMul alone"]["bytes"] < rows["ONNX float32"]["bytes"]


def test_the_readme_table_says_what_was_kept(result):
    block = encoder.readme_block(result)
    whole = result["training"]["heldout"]["macro_f1"]
    row = next(row for row in result["allocations"] if row["what"] == "int8 everywhere")
    assert f"| int8 everywhere | {row['bytes'] / 1e6:.1f} | {row['macro_f1']:.3f} " in block
    assert f"{row['macro_f1'] / whole:.1%} |" in block
    assert block.count("\n|") == 2 + len(result["allocations"]) + 2 + len(result["qat"])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_the_logistic_regression_of_scikit_learn(classes):
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    model = small_classifier(classes + 1)  # one more than occurs in training
    ids = torch.randint(3, 16, (60, 6), generator=generator)
    labels = ids[:, 0] % classes
    batches = [TextBatch(ids, torch.ones_like(ids), labels)]
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    encoder_training.fit_head(model, batches)
    with torch.no_grad():
        states = masked_mean(model.encoder(input_ids=ids).last_hidden_state, batches[0].mask)
    length = states.norm(dim=1).mean()
    wanted = LogisticRegression(max_iter=500).fit((states / length).numpy(), labels.numpy())
    shares = logits_of(model, batches)[:, :classes].softmax(dim=-1)
    found = torch.from_numpy(wanted.predict_proba((states / length).numpy())).float()
    torch.testing.assert_close(shares, found, atol=1e-3, rtol=1e-3)
    assert int(logits_of(model, batches).argmax(-1).max()) < classes
    after = model.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_generic_texts_are_english_and_many():
    from labkit.study.encoder_calibration import generic_texts

    texts = generic_texts()
    assert len(texts) >= 100 and all(len(text.split()) == 15 for text in texts)


def test_layers_are_chosen_on_texts_of_all_lengths():
    lab = SimpleNamespace(validation=list(range(14)))
    assert encoder_mixed.choosing(lab) == [1, 4, 7, 10]
