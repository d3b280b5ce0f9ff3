"""The greedy loop: transformers' tokens, every kind of cache, times of both phases."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

from labkit.core.errors import ModelError, SchemeError, ShapeError
from labkit.models.decode import DecodeTimes, decode
from labkit.models.decoder import decoder_from_model

_IDS = [5, 17, 99, 3, 64]


def _generated(model: torch.nn.Module, count: int) -> list[int]:
    out = model.generate(torch.tensor([_IDS]), max_new_tokens=count, do_sample=False)
    return out[0, len(_IDS) :].tolist()


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gemma2", "gpt2"])
def test_tokens_are_those_of_generate(family) -> None:
    model = tiny(family)
    found = decode(model, _IDS, 12)
    assert found.tokens == _generated(model, 12)
    assert len(found.times.steps) == len(found.tokens) - 1
    assert found.times.prompt == len(_IDS)


def test_it_stops_where_generate_stops() -> None:
    model = tiny("llama")
    tokens = decode(model, torch.tensor([_IDS]), 10, stop=()).tokens
    assert len(tokens) == 10
    end = tokens[4]
    model.generation_config.eos_token_id = [end]
    first = tokens.index(end)
    assert decode(model, _IDS, 10).tokens == tokens[: first + 1] == _generated(model, 10)
    decoder = decoder_from_model(model)
    assert decode(decoder, _IDS, 10, stop=[end]).tokens == tokens[: first + 1]


def test_each_kind_of_cache_holds_fewer_bytes_and_fp16_the_tokens() -> None:
    model = tiny("llama_gqa_tied", hidden_size=128)
    found = {kind: decode(model, _IDS, 12, kind) for kind in ("fp16", "int8", "fp8", "int4")}
    assert found["fp16"].tokens == decode(model, _IDS, 12).tokens
    sizes = [found[kind].cache_nbytes for kind in ("fp16", "int8")]
    assert 0 < sizes[1] < sizes[0] and found["fp8"].cache_nbytes == sizes[1]
    # Eight bits move some logits by a percent; the first token is far enough from the second.
    assert found["int8"].tokens[0] == found["fp16"].tokens[0]


def test_times_are_the_medians_of_their_phase() -> None:
    times = DecodeTimes(prompt=100, prefill=0.5, steps=[0.1, 0.2, 9.0])
    assert times.prefill_per_second == 200
    assert times.decode_per_second == 5
    assert DecodeTimes(1, 1.0).decode_per_second == 0


def test_what_makes_no_sense_is_refused() -> None:
    model = tiny("llama")
    for ids, count in (([], 3), (_IDS, 0)):
        with pytest.raises(ShapeError):
            decode(model, ids, count)
    with pytest.raises(SchemeError):
        decode(model, _IDS, 3, "fp4")
    decoder = decoder_from_model(model, capacity=8)
    with pytest.raises(ShapeError, match="room for 8"):
        decode(decoder, _IDS, 5)
    assert len(decode(decoder, _IDS, 4).tokens) == 4
    with pytest.raises(ModelError, match="own"):
        decode(decoder, _IDS, 2, "int8")
