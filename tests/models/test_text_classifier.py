"""The classifier, its batches, and its rounded doubles; on an encoder of two small blocks."""

import pytest
import torch
from tiny_classifier import WORDS, Tokenizer, colours_or_animals, small_classifier

from labkit.core.errors import CalibrationError, CorpusError, ModelError, NonFiniteError
from labkit.core.scheme import QuantScheme
from labkit.evaluate.classification import (
    classifier_score,
    damage,
    labels_of,
    logits_of,
    score_logits,
)
from labkit.evaluate.sensitivity import layer_sensitivity
from labkit.models import mixed_precision as mixed
from labkit.models.text_classifier import Epochs, TextBatch, tokenize
from labkit.quantize import rtn
from labkit.training.convert import convert
from labkit.training.losses import classification_loss
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train


@pytest.fixture
def model():
    return small_classifier()


@pytest.fixture(scope="module")
def batches():
    return tokenize(Tokenizer(), colours_or_animals(), batch_size=8)


def test_batches_hold_every_text_once_with_its_label(batches):
    data = colours_or_animals()
    found = []
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape
        assert bool((batch.ids[batch.mask == 0] == 0).all())
        for ids, mask, label in zip(batch.ids, batch.mask, batch.labels, strict=True):
            words = ids[mask.bool()][1:-1].tolist()
            found.append((" ".join(WORDS[i - 3] for i in words), int(label)))
    assert sorted(found) == sorted(zip(data.texts, data.labels, strict=True))


def test_little_is_padding(batches):
    real = sum(int(batch.mask.sum()) for batch in batches)
    assert real > 0.85 * sum(batch.mask.numel() for batch in batches)


def test_long_texts_are_cut(batches):
    cut = tokenize(Tokenizer(), colours_or_animals(), max_tokens=5)
    assert max(batch.ids.shape[1] for batch in cut) == 5
    for arguments in ({"batch_size": 0}, {"max_tokens": 2}):
        with pytest.raises(CorpusError, match="tokenize"):
            tokenize(Tokenizer(), colours_or_animals(), **arguments)


def test_epochs_take_every_batch_in_another_order(batches):
    epochs = Epochs(batches, seed=3)
    first, second = (
        [epochs(step) for step in range(k, k + len(batches))] for k in (0, len(batches))
    )
    assert {id(b) for b in first} == {id(b) for b in second} == {id(b) for b in batches}
    assert [id(b) for b in first] != [id(b) for b in second]
    assert [id(epochs(step)) for step in range(len(batches))] == [id(b) for b in first]


def test_padding_changes_no_answer(model, batches):
    batch = batches[0]
    wide = TextBatch(
        torch.nn.functional.pad(batch.ids, (0, 6), value=5),
        torch.nn.functional.pad(batch.mask, (0, 6)),
    )
    with torch.no_grad():
        torch.testing.assert_close(model(wide), model(batch), rtol=1e-4, atol=1e-5)


def test_it_learns_and_its_rounded_copy_learns(model, batches):
    def loss(network, batch):
        return classification_loss(network(batch), batch.labels)

    settings = TrainSettings(steps=40, lr=3e-3, warmup=2, divergence=1e9)  # it learns to 1e-7
    before = classifier_score(model, batches).macro_f1
    train(model, Epochs(batches), settings, loss=loss)
    learned = classifier_score(model, batches)
    assert before < 0.9 < 0.95 < learned.macro_f1

    keep = ("encoder.encoder.layer.0.attention.self.query",)
    config = QatConfig(QuantScheme(2, True, "channel", narrow_range=False), keep=keep)
    said = []
    rounded = prepare(model, config, tell=said.append)
    assert keep[0] in said[0] and "head" in said[0]
    train(rounded, Epochs(batches), settings, loss=loss)
    whole = convert(rounded)
    assert len(whole.layers) == 11 and keep[0] not in whole.layers
    torch.testing.assert_close(logits_of(whole.model, batches), logits_of(rounded, batches))
    assert classifier_score(whole.model, batches).macro_f1 > 0.95


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 5, generator=generator)
    labels = torch.randint(0, 4, (50,), generator=generator)  # the fifth class never occurs
    score = score_logits(logits, labels)
    guesses = logits.argmax(-1)
    assert score.accuracy == pytest.approx(accuracy_score(labels, guesses))
    wanted = f1_score(labels, guesses, labels=[0, 1, 2, 3], average="macro")
    assert score.macro_f1 == pytest.approx(wanted)


def test_damage_sees_what_f1_does_not():
    before = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1])
    found = damage(before, after, labels)
    assert (found.f1_drop, found.flips) == (0.0, 0.0) and found.kl > 0.01
    assert damage(before, before.flip(0), labels).f1_drop == 1.0


def test_missing_labels_and_texts(model, batches):
    bare = TextBatch(batches[0].ids, batches[0].mask)
    with pytest.raises(CorpusError, match="labels are missing"):
        classifier_score(model, [bare])
    with pytest.raises(CorpusError, match="no texts"):
        logits_of(model, [])
    with pytest.raises(CorpusError, match="3 labels for logits"):
        score_logits(torch.zeros(2, 2), torch.tensor([0, 1, 1]))


def test_doubles_are_the_rounded_weights_and_count_their_bytes(model):
    doubles = mixed.all_doubles(model)
    assert len(doubles) == 13 and next(iter(doubles)).endswith("word_embeddings")
    for name, row in doubles.items():
        layer = model.get_submodule(name)
        for choice, scheme in mixed.CHOICES.items():
            double, size = row[choice]
            assert type(double) is type(layer)
            if scheme is None:
                torch.testing.assert_close(double.weight, layer.weight.half().float())
                assert size == 2 * layer.weight.numel()
            else:
                exact = rtn.quantize(layer.weight, scheme)
                assert torch.equal(double.weight, exact.dequantize()) and size == exact.nbytes
            assert getattr(double, "bias", None) is getattr(layer, "bias", None)
            assert double.weight is not layer.weight
    total = sum(p.numel() for p in model.parameters())
    chosen = sum(layer.weight.numel() for layer in mixed.choosable_layers(model).values())
    assert mixed.fixed_bytes(model) == 2 * (total - chosen)


def test_sensitivity_is_that_of_whole_runs_and_leaves_the_model_alone(model, batches):
    doubles = mixed.all_doubles(model, {"int2": QuantScheme(2, True, "channel")})
    exact = logits_of(model, batches)
    rows = layer_sensitivity(model, batches, doubles)
    assert [row.layer for row in rows] == list(doubles)
    for row in rows:
        whole = mixed.with_choices(model, doubles, {row.layer: "int2"})
        wanted = damage(exact, logits_of(whole, batches), labels_of(batches))
        assert row.damage.kl == pytest.approx(wanted.kl, rel=1e-3, abs=1e-9)
        assert row.damage.flips == wanted.flips
        assert row.bytes == doubles[row.layer]["int2"][1]
    assert torch.equal(logits_of(model, batches), exact)


def test_sensitivity_and_doubles_refuse_names_that_are_not_there(model, batches):
    doubles = mixed.all_doubles(model)
    with pytest.raises(ModelError, match="no layer 'elsewhere'"):
        layer_sensitivity(model, batches, {"elsewhere": {}})
    with pytest.raises(ModelError, match="no double 'int5'"):
        mixed.with_choices(model, doubles, {next(iter(doubles)): "int5"})


def test_a_ruined_weight_is_named(model):
    layer = model.encoder.encoder.layer[1].output.dense
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        mixed.all_doubles(model)
    assert "layer.1.output.dense" in caught.value.__notes__[0]


def test_static_inputs_never_see_padding(model, batches):
    name = "encoder.encoder.layer.0.attention.self.query"
    narrow = mixed.observe_inputs(model, batches)[name].range(8, False)
    wide = [
        TextBatch(
            torch.nn.functional.pad(b.ids, (0, 4), value=9), torch.nn.functional.pad(b.mask, (0, 4))
        )
        for b in batches
    ]
    for one, other in zip(
        narrow, mixed.observe_inputs(model, wide)[name].range(8, False), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_eight_bit_inputs_change_little_and_need_texts(model, batches):
    rounded = mixed.with_static_inputs(model, mixed.static_inputs(model, batches))
    error = (logits_of(rounded, batches) - logits_of(model, batches)).abs().max()
    assert 0 < float(error) < 0.1
    with pytest.raises(CalibrationError, match="no calibration texts"):
        mixed.static_inputs(model, [])
