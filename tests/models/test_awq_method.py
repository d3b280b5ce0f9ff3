"""AWQ on whole blocks: every family, what it folds, what it reports, what it refuses."""

import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.errors import CalibrationError, GroupSizeError, NonFiniteError
from labkit.core.scheme import QuantScheme
from labkit.models.blockwise import quantize_blockwise
from labkit.models.families import family
from labkit.models.methods import METHODS, Awq, Rtn
from labkit.models.methods import awq as method
from labkit.models.methods.awq_inputs import BlockInputs
from labkit.models.walking import linear_layers, weight_matrix

SCHEME = QuantScheme(3, False, "group", 16)
QUICK = Awq(SCHEME, steps=4, first_tokens=32, most_tokens=64)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


class Seen(Awq):
    """AWQ that keeps what its searches found, and what each block was."""

    def search_folds(self, block, inputs):
        found = super().search_folds(block, inputs)
        SEARCHES.append((block, inputs, found))
        return found


SEARCHES = []


@pytest.fixture(autouse=True)
def fresh():
    SEARCHES.clear()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_quantized_and_every_layer_reported(name):
    model, ids = tiny(name), tokens()
    result = quantize_blockwise(model, Seen(SCHEME, steps=4, first_tokens=32), ids)
    names = list(linear_layers(model))
    assert [r.name for r in result.reports] and {r.name for r in result.reports} == set(names)
    assert set(result.layers) == set(names)
    for report in result.reports:
        assert report.tokens == ids.numel() and report.loss is not None and report.loss >= 0
    for _, _, found in SEARCHES:
        assert found
        for fold, search in found:
            assert search.loss <= search.unscaled, fold
    changed = linear_layers(result.model)
    for name_of, quantized in result.layers.items():
        torch.testing.assert_close(
            weight_matrix(changed[name_of]), quantized.dequantize(), rtol=0, atol=0
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_leaves_the_function_and_rounding_costs_less(name, monkeypatch):
    """With rounding switched off AWQ is the identity: all that it folded cancels."""
    model, ids = tiny(name), tokens()
    before = logits(model, ids)
    folded = []
    apply = method.apply_fold

    def applied(block, fold, scales):
        apply(block, fold, scales)
        folded.append(fold)

    class Exact:
        """Stands for a quantized weight, and is the weight."""

        def __init__(self, weight, scheme):
            self.weight, self.shape, self.bits_per_weight = weight, weight.shape, 32.0
            self.nbytes = weight.numel() * 4

        def dequantize(self):
            return self.weight

    monkeypatch.setattr(method, "apply_fold", applied)
    monkeypatch.setattr(method.rtn, "quantize", Exact)
    result = quantize_blockwise(model, Awq(SCHEME, clip=False, steps=4, first_tokens=32), ids)
    assert len(folded) == 2 * len(family(model).folds(_first_block(model)))
    assert not torch.equal(logits(result.model, ids), before)
    torch.testing.assert_close(logits(result.model, ids), before, rtol=1e-3, atol=1e-3)


def _first_block(model):
    from labkit.models.walking import decoder_blocks

    return decoder_blocks(model)[1][0]


def loud(name):
    """A model in which a few channels of every norm's output are loud, as in large ones."""
    model = tiny(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in key.lower() and key.endswith("weight"):
                parameter[::16] += 12.0
    return model


@pytest.mark.parametrize("name", ["llama_gqa_tied", "opt", "gemma"])
def test_better_than_rounding_on_unseen_tokens(name):
    model, unseen = loud(name), tokens(8, 32, seed=9)
    reference = logits(model, unseen)
    errors = {
        kind: float(
            (logits(quantize_blockwise(model, chosen, tokens(16, 32)).model, unseen) - reference)
            .square()
            .mean()
        )
        for kind, chosen in {"rtn": Rtn(SCHEME), "awq": Awq(SCHEME, first_tokens=128)}.items()
    }
    assert errors["awq"] < errors["rtn"]


def test_the_original_model_and_the_order_of_inputs():
    """The model given is not changed; the next block is calibrated on the original one's output."""
    model, ids = tiny("llama"), tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    quantize_blockwise(model, Seen(SCHEME, steps=4, first_tokens=32), ids)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    second = torch.cat([call.hidden for call in SEARCHES[1][0].inputs])
    torch.testing.assert_close(second, states[1], rtol=1e-5, atol=1e-5)


def test_grouped_query_attention_is_reported():
    result = quantize_blockwise(tiny("llama_gqa_tied"), QUICK, tokens())
    notes = {report.name.split("self_attn.")[-1]: report.note for report in result.reports}
    assert "not scaled" in notes["o_proj"] and "grouped-query" in notes["o_proj"]
    assert "not scaled" not in notes["q_proj"]


def test_few_tokens_are_reported():
    result = quantize_blockwise(tiny("llama"), QUICK, tokens(1, 8))
    assert all("8 tokens for" in report.note for report in result.reports)
    result = quantize_blockwise(tiny("llama"), QUICK, tokens(16, 16))
    assert not any("tokens for" in report.note for report in result.reports)


def test_dead_channels_are_reported():
    model = tiny("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.input_layernorm.weight[5] = 0.0
    result = quantize_blockwise(model, QUICK, tokens())
    notes = {report.name: report.note for report in result.reports}
    assert "1 channels that no input reaches" in notes["model.layers.0.self_attn.q_proj"]
    assert bool(torch.isfinite(logits(result.model, tokens())).all())


def test_zero_weights_stay_zero():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3:9] = 0.0
        model.model.layers[1].mlp.down_proj.weight.zero_()
    result = quantize_blockwise(model, QUICK, tokens())
    layers = linear_layers(result.model)
    assert not bool(layers["model.layers.0.mlp.up_proj"].weight[3:9].any())
    assert not bool(layers["model.layers.1.mlp.down_proj"].weight.any())


def test_q_and_k_are_not_clipped(monkeypatch):
    clipped = []
    search = method.search_clip
    monkeypatch.setattr(
        method, "search_clip", lambda weight, *rest: clipped.append(weight) or search(weight, *rest)
    )
    quantize_blockwise(tiny("llama"), QUICK, tokens())
    assert len(clipped) == 2 * 5  # v, o, gate, up, down
    clipped.clear()
    quantize_blockwise(tiny("phi3"), QUICK, tokens())
    assert len(clipped) == 2 * 3  # all but the fused q, k, v


def test_layers_that_are_kept_are_scaled_but_not_rounded():
    model, ids = tiny("llama"), tokens()
    before = logits(model, ids)
    result = quantize_blockwise(model, QUICK, ids, keep=["*.k_proj", "*.mlp.*"])
    assert not any("k_proj" in name or "mlp" in name for name in result.layers)
    everything = quantize_blockwise(model, QUICK, ids)
    errors = [float((logits(r.model, ids) - before).norm()) for r in (result, everything)]
    assert errors[0] < errors[1]


def test_the_sample_gives_back_the_outputs_of_the_module():
    quantize_blockwise(tiny("qwen2"), Seen(SCHEME, steps=1, first_tokens=32), tokens(5, 16))
    block, *_ = SEARCHES[0]
    # The weights are quantized by now: against themselves, whatever they are, nothing is lost.
    inputs = BlockInputs(block, 1000)
    for module in ("self_attn", "mlp"):
        sample = inputs.sample(module)
        assert sample.tokens == 80
        assert sample.loss(10**9) < 1e-10
        taken = [output.shape[:2] for _, output in sample.first(40)]
        assert sum(rows for rows, _ in taken) == 3  # 40 tokens are in three sequences of 16


def test_refusals():
    model = tiny("llama")
    with pytest.raises(CalibrationError, match="needs calibration"):
        quantize_blockwise(model, QUICK)
    with pytest.raises(GroupSizeError) as caught:
        quantize_blockwise(model, Awq(QuantScheme(4, False, "group", 48)), tokens())
    assert "model.layers.0" in "".join(caught.value.__notes__)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        quantize_blockwise(model, QUICK, tokens())
    assert "model.layers.1" in "".join(caught.value.__notes__)


def test_infinite_activations_are_named():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:] = 3e38
    with pytest.raises(NonFiniteError) as caught:
        quantize_blockwise(model, QUICK, tokens())
    assert "model.layers.0" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_it_is_a_method_with_settings():
    assert METHODS["awq"] is Awq
    assert QUICK.settings()["steps"] == 4 and QUICK.settings()["scheme"]["group_size"] == 16
