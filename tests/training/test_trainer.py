"""The training loop: the same run twice, in two pieces, and one that goes wrong."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_nets import SmallNet, images, token_batch
from tiny_models import tiny

from labkit.core.errors import CorpusError, FormatError, NonFiniteError, ResumeError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.training import trainer
from labkit.training.batch_norm import QatConvBn2d
from labkit.training.divergence import DivergenceError
from labkit.training.fake_quant import FakeQuant
from labkit.training.losses import classification_loss
from labkit.training.optimizer import build_optimizers, lr_factor
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train

W2 = QuantScheme(2, True, "channel", narrow_range=False)
STATIC8 = QuantScheme(8, False, "tensor")
STATIC8_SIGNED = QuantScheme(8, True, "tensor", narrow_range=False)
SHORT = TrainSettings(steps=6, warmup=2, lr=3e-3, save_every=2, evaluate_every=3)


def prepared(config: QatConfig | None = None) -> torch.nn.Module:
    config = config or QatConfig(W2, STATIC8)
    return prepare(tiny("llama_gqa_tied"), config, tell=lambda line: None)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_brings_the_rounded_model_back_to_its_teacher(optimizer):
    model, told = prepared(), []
    settings = replace(SHORT, steps=25, optimizer=optimizer)
    history = train(
        model,
        token_batch,
        settings,
        teacher=tiny("llama_gqa_tied"),
        progress=lambda *row: told.append(row),
    )
    losses = [row["loss"] for row in history]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [row["step"] for row in history] == list(range(1, 26))
    assert told[-1][1:] == (25, 25) and not model.training


def test_without_a_teacher_it_learns_the_text():
    history = train(prepared(), token_batch, replace(SHORT, steps=15))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.parametrize("scales", ["learned", "minmax"])
def test_two_runs_and_a_resumed_one_give_the_same_bits(tmp_path, monkeypatch, scales):
    config = QatConfig(W2, STATIC8, scales=scales)
    settings, teacher = replace(SHORT, freeze_at=0.5), tiny("llama_gqa_tied")
    whole, again, broken = prepared(config), prepared(config), prepared(config)
    history = train(whole, token_batch, settings, teacher=teacher)
    torch.manual_seed(99)  # whatever the caller did with the generator
    assert train(again, token_batch, settings, teacher=teacher) == history
    assert same(state(whole), state(again))

    def fails_at_five(step):
        if step == 5:
            raise KeyboardInterrupt
        return token_batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(broken, fails_at_five, settings, teacher=teacher, folder=tmp_path / "run")
    resumed = prepared(config)
    rows = train(resumed, token_batch, settings, teacher=teacher, folder=tmp_path / "run")
    assert rows == history
    assert same(state(whole), state(resumed))
    done = prepared(config)  # and a finished run is not trained further
    monkeypatch.setattr(trainer._Run, "_step", None)
    assert train(done, token_batch, settings, teacher=teacher, folder=tmp_path / "run") == history
    assert same(state(whole), state(done))


def test_nothing_on_disk_is_a_pickle(tmp_path):
    train(prepared(), token_batch, SHORT, folder=tmp_path / "run")
    assert {p.suffix for p in (tmp_path / "run").iterdir()} == {".json", ".safetensors"}
    with safe_open(tmp_path / "run" / "training.safetensors", "pt") as file:
        assert json.loads(file.metadata()["history"])[-1]["step"] == 6


def test_evaluation_joins_the_history_and_the_generator_is_left_alone():
    model, calls = prepared(), []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    def evaluate(model):
        calls.append(model.training)
        return {"figure": float(len(calls))}

    history = train(model, token_batch, SHORT, evaluate=evaluate)
    assert torch.equal(torch.rand(1), expected)
    assert [r["step"] for r in history if "figure" in r] == [0, 3, 6]
    assert calls == [False] * 3


def test_ranges_and_statistics_freeze_on_the_way():
    model = prepare(SmallNet(), QatConfig(W2, STATIC8, scales="minmax"), tell=lambda line: None)
    labels = torch.arange(8) % 4

    def loss(net, step):
        return classification_loss(net(images(seed=step)), labels)

    settings = replace(SHORT, freeze_at=0.5)
    train(model, lambda step: step, settings, loss=loss)
    assert all(bool(m.frozen) for m in model.modules() if isinstance(m, FakeQuant))
    assert all(m.statistics_frozen for m in model.modules() if isinstance(m, QatConvBn2d))
    with pytest.raises(CorpusError, match="missing"):
        train(model, lambda s: s, SHORT, loss=lambda n, s: classification_loss(n(images()), None))


def test_frozen_ranges_of_a_language_model_stay_and_its_weights_go_on():
    model, seen = prepared(QatConfig(W2, STATIC8, scales="minmax")), []
    layer = model.model.layers[1].mlp.up_proj

    def watch(word, done, total):
        seen.append((layer.input_quant.hi.item(), layer.weight.detach().clone()))

    settings = replace(SHORT, steps=8, freeze_at=0.5)
    train(model, token_batch, settings, teacher=tiny("llama_gqa_tied"), progress=watch)
    highs = [high for high, _ in seen]
    assert len(set(highs[:4])) == 4 and set(highs[3:]) == {highs[3]}
    assert not torch.equal(seen[4][1], seen[7][1])
    frozen = [m for m in model.modules() if isinstance(m, FakeQuant)]
    assert frozen and all(bool(m.frozen) for m in frozen)
    assert float(layer.input_quant.qparams()[0]) > 0


def test_clips_are_learned_downwards():
    """Nothing is clipped at first, and only the penalty says that a finer grid is worth it."""
    config = QatConfig(W2, STATIC8_SIGNED, activations="pact")
    ends = {}
    for decay in (0.0, 1e-2):
        model, alphas = prepared(config), []
        clip = model.model.layers[1].mlp.down_proj.input_quant

        def watch(word, done, total, clip=clip, alphas=alphas):
            alphas.append(clip.alpha.item())

        history = train(
            model,
            token_batch,
            replace(SHORT, steps=12, clip_decay=decay),
            teacher=tiny("llama_gqa_tied"),
            progress=watch,
        )
        assert all(row["loss"] < 50 for row in history)  # that of the model, without the penalty
        ends[decay] = alphas[-1] / alphas[0]
    assert ends[1e-2] < min(ends[0.0], 0.99)


def test_divergence_stops_the_run_and_says_why(tmp_path):
    settings = replace(SHORT, steps=60, lr=30.0, clip_norm=1e9, warmup=20)
    with pytest.raises(DivergenceError, match="learning rate was") as caught:
        train(prepared(), token_batch, settings, folder=tmp_path / "run")
    error = caught.value
    assert 0 < error.step < 60 and len(error.history) >= error.step - 1
    assert "Lower lr" in error.remedy


def test_a_loss_that_is_not_a_number_stops_it_at_once():
    def loss(model, batch):
        poison = float("nan") if len(seen) == 3 else 1.0
        seen.append(batch)
        return model(input_ids=token_batch(0)).logits.float().square().mean() * poison

    seen: list[int] = []
    with pytest.raises(DivergenceError, match="loss is nan") as caught:
        train(prepared(QatConfig(W2)), lambda step: step, SHORT, loss=loss)
    assert caught.value.step == 4 and len(caught.value.history) == 3


def test_a_model_that_was_ruined_before_is_not_called_divergence():
    model = prepared(QatConfig(W2, scales="minmax"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError):
        train(model, token_batch, SHORT)


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = tmp_path / "run"
    train(prepared(), token_batch, SHORT, folder=folder)
    with pytest.raises(ResumeError, match=r"settings\.lr"):
        train(prepared(), token_batch, replace(SHORT, lr=1e-4), folder=folder)
    with pytest.raises(ResumeError, match="model"):
        train(prepared(QatConfig(W2, scales="minmax")), token_batch, SHORT, folder=folder)
    (folder / "training.safetensors").write_bytes(b"half of it")
    with pytest.raises(FormatError, match="no checkpoint"):
        train(prepared(), token_batch, SHORT, folder=folder)


def test_scales_move_by_a_share_of_themselves():
    model = prepared()
    optimizers = build_optimizers(model, "muon", 1e-3, 0.01)
    peaks = {id(g["params"][0]): g["peak"] for g in optimizers[0].param_groups[:-1]}
    quant = model.model.layers[0].mlp.up_proj.weight_quant
    assert peaks[id(quant.scale)] == pytest.approx(0.01 * quant.scale.mean().item())
    zero = model.model.layers[0].mlp.up_proj.input_quant.zero_point
    assert peaks[id(zero)] == pytest.approx(0.01 * 255)
    held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.ndim == 2 for p in optimizers[1].param_groups[0]["params"])


def test_the_learning_rate_rises_and_falls():
    factors = [lr_factor(step, 20, 5) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True) and 0 < factors[-1] < 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"freeze_at": 2},
        {"divergence": 1},
        {"optimizer": "sgd"},
    ],
)
def test_settings_that_make_no_run(wrong):
    with pytest.raises(SchemeError, match="TrainSettings"):
        replace(SHORT, **wrong)


def train_for_long(folder: str) -> None:
    """What `test_a_killed_run_...` starts in a process of its own."""
    train(prepared(), token_batch, replace(SHORT, steps=10_000, save_every=1), folder=folder)


def test_a_killed_run_leaves_a_checkpoint_that_is_whole(tmp_path):
    folder = tmp_path / "run"
    # Not a fork: the child of a process with busy threads may wait for their locks for ever.
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    program = "import sys, test_trainer; test_trainer.train_for_long(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], env=os.environ | {"PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 120
    while not (folder / "training.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.02)
    process.kill()
    process.wait()
    with safe_open(folder / "training.safetensors", "pt") as file:
        assert int(file.metadata()["step"]) >= 1
