"""The training run of the bundled model: batches, resuming, export, card."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labkit.core.errors import ModelError
from labkit.data.tasks import Turn
from labkit.models import bundled_folder, load
from labkit.training.reference import loop, run
from labkit.training.reference.card_text import render
from labkit.training.reference.checkpoint import load_checkpoint, save_checkpoint
from labkit.training.reference.mixture import Mixture
from labkit.training.reference.optimizer import build_optimizers
from labkit.training.reference.recipe import Architecture, Recipe


@pytest.fixture(scope="module")
def tokenizer():
    return load("reference-lm")[1]


@pytest.fixture(scope="module")
def recipe():
    small = Architecture(hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    phases = tuple(replace(p, steps=3, rows=2, length=32) for p in Recipe().phases[:2])
    return replace(Recipe(), architecture=small, phases=phases, warmup_steps=2, decay_steps=2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "evaluate", lambda model, tokenizer: {})


def test_batches_depend_on_the_step_alone(tokenizer):
    mixture = Mixture(tokenizer, Recipe())
    one, again, other = mixture.batch(7), mixture.batch(7), mixture.batch(8)
    assert torch.equal(one.tokens, again.tokens) and torch.equal(one.weights, again.weights)
    assert not torch.equal(one.tokens, other.tokens)
    assert one.tokens.shape == (16, 257) and one.weights.shape == (16, 256)


def test_answers_and_only_answers_weigh_more(tokenizer):
    mixture = Mixture.__new__(Mixture)
    mixture.tokenizer, mixture.recipe = tokenizer, Recipe()
    turns = [Turn(">>> 12 + 3\n", "15\n"), Turn(">>> len('tree')\n", "4\n")]
    ids, weights = mixture.encode(turns, answer_weight=2.0)
    answers = [token for token, weight in zip(ids, weights, strict=True) if weight == 2.0]
    assert tokenizer.decode(answers) == "15\n4\n"
    assert ids == tokenizer("".join(turn.prompt + turn.answer for turn in turns))["input_ids"]


def test_a_stopped_run_resumes_to_the_same_weights(recipe, tokenizer, tmp_path, quick):
    whole, history = loop.train(recipe, tokenizer, tmp_path / "a", lambda row: None, False)

    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        loop.train(recipe, tokenizer, tmp_path / "b", stop, False)
    resumed, again = loop.train(recipe, tokenizer, tmp_path / "b", lambda row: None, False)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]


def test_a_kill_while_saving_leaves_the_last_checkpoint(recipe, tmp_path, monkeypatch):
    model = loop.build_model(recipe, 0)
    optimizers = build_optimizers(model, recipe)
    save_checkpoint(tmp_path, model, optimizers, 4, [{"step": 4}])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, model, optimizers, 5, [])
    assert load_checkpoint(tmp_path, model, optimizers) == (4, [{"step": 4}])


def test_another_recipe_does_not_continue_a_run(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(Recipe().as_json())
    with pytest.raises(ModelError, match="another recipe"):
        run.train_reference(recipe, tmp_path / "out", tmp_path, lambda row: None)


def test_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe()
    factors = [recipe.lr_factor(step) for step in range(recipe.steps)]
    assert factors[0] == 1 / recipe.warmup_steps
    assert factors[recipe.warmup_steps] == factors[recipe.steps - recipe.decay_steps] == 1
    assert 0 < factors[-1] < 0.01


def test_shares_add_up():
    for phase in Recipe().phases:
        assert sum(share for _, share in phase.shares) == pytest.approx(1)


def test_the_card_says_what_was_measured():
    card = json.loads((bundled_folder() / "card.json").read_text())
    assert (bundled_folder() / "README.md").read_text() == render(card)
    assert json.loads(Recipe().as_json()) == card["recipe"]
    good = [row["correct"] / row["total"] >= 0.9 for row in card["measured"]["tasks"].values()]
    assert len(good) == 4 and sum(good) >= 3


def test_the_card_belongs_to_the_model():
    """The same model, measured again: tasks do not depend on the Python version."""
    from labkit.evaluate.tasks import task_accuracy

    card = json.loads((Path(bundled_folder()) / "card.json").read_text())
    model, tokenizer = load("reference-lm")
    for name, row in card["measured"]["tasks"].items():
        low, high = row["interval"]
        assert low - 0.05 <= task_accuracy(model, tokenizer, name, 60).accuracy <= high + 0.05
