"""Labelled texts: our own data set, anybody's, and what is refused."""

import builtins
import sys
import types

import pytest

from labkit.core.errors import CorpusError, OfflineError
from labkit.data import docstring_topics as topics
from labkit.data.hub_labelled import from_rows
from labkit.data.labelled import SPLITS, LabelledTexts, load_labelled


@pytest.fixture(scope="module")
def splits():
    return {split: load_labelled(split=split) for split in SPLITS}


def test_no_module_and_no_text_is_in_two_splits(splits):
    for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not set(splits[one].sources) & set(splits[other].sources)
        assert not set(splits[one].texts) & set(splits[other].texts)


def test_every_class_has_examples_enough(splits):
    for split, fewest in zip(SPLITS, (90, 10, 30), strict=True):
        labels = splits[split].labels
        counts = [labels.count(index) for index in range(len(topics.CLASSES))]
        assert min(counts) >= fewest, dict(zip(topics.CLASSES, counts, strict=True))
        assert max(counts) < 4 * min(counts)


def test_every_module_of_the_table_is_there(splits):
    found = {source for data in splits.values() for source in data.sources}
    for module in topics._PLACE:
        inside = [name for name in found if name == module or name.startswith(f"{module}.")]
        assert inside or module in {"io", "profile", "cProfile"}, module


def test_it_is_the_same_every_time(splits):
    topics._examples.cache_clear()
    again = load_labelled(split="heldout")
    assert again == splits["heldout"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Parse an email message.", "Parse an message."),
        ("Use http.client to ask.", "Use to ask."),
        ("An HTTPConnection, an XMLParser.", "An , an ."),
        ("A ZipFile, a tarfile; zip files.", "A , a ; zip ."),
        ("Emails and inspectors stay.", "Emails and inspectors stay."),
    ],
)
def test_names_that_give_the_answer_away_are_taken_out(text, left):
    assert topics.cleaned(text) == left


def test_nothing_in_the_texts_names_a_package(splits):
    for data in splits.values():
        for text in data.texts:
            assert not [word for word in topics._IDENTIFIER.findall(text) if topics._tells(word)]


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(topics.stdlib_text, "stdlib_root", lambda: tmp_path)
    topics._examples.cache_clear()
    with pytest.raises(CorpusError, match="no standard-library sources"):
        topics.load_docstring_topics("train")
    topics._examples.cache_clear()


@pytest.mark.parametrize(
    ("texts", "labels", "what"),
    [
        ((), (), "no texts"),
        (("a b", "c"), (0,), "2 texts and 1 labels"),
        (("a b", "  "), (0, 1), "text 1 is empty"),
        (("a b", "c"), (0, None), "label of text 1 is None"),
        (("a b", "c"), (-1, -1), "label of text 0 is -1"),
        (("a b", "c"), (0, 2), "label of text 1 is 2"),
        (("a b", "c"), (1, 1), "all 2 labels are 'y'"),
    ],
)
def test_what_is_no_training_set(texts, labels, what):
    with pytest.raises(CorpusError, match=what):
        LabelledTexts("mine", "train", texts, labels, ("x", "y"))


def test_a_spread_is_even_and_keeps_labels_with_texts():
    data = LabelledTexts(
        "m", "train", tuple("abcdef"), (0, 1, 0, 1, 0, 1), ("x", "y"), tuple("abcdef")
    )
    assert data.spread(4).texts == ("a", "b", "d", "e") == data.spread(4).sources
    assert data.spread(4).labels == (0, 1, 1, 0)
    assert data.spread(9) is data


def test_rows_with_class_names_are_numbered():
    rows = [{"body": "one", "kind": "spam"}, {"body": "two", "kind": "ham"}]
    data = from_rows("mail", "train", rows, "body", "kind")
    assert (data.classes, data.labels) == (("ham", "spam"), (1, 0))
    with pytest.raises(CorpusError, match=r"no column 'text'.*It has body, kind"):
        from_rows("mail", "train", rows)
    with pytest.raises(CorpusError, match="label of text 1 is None"):
        from_rows("mail", "train", [*rows[:1], {"body": "two", "kind": None}], "body", "kind")


class _Rows(list):
    def __init__(self, rows, names):
        super().__init__(rows)
        self.features = {"label": types.SimpleNamespace(names=names)}


def _fake_hub(monkeypatch, names, load):
    hub = types.ModuleType("datasets")
    hub.get_dataset_split_names, hub.load_dataset = lambda *args: names, load
    monkeypatch.setitem(sys.modules, "datasets", hub)


def test_any_data_set_of_the_hub(monkeypatch):
    asked = []

    def load(*args, split):
        asked.append((*args, split))
        return _Rows([{"text": "a", "label": 0}, {"text": "b", "label": 1}], ["x", "y"])

    _fake_hub(monkeypatch, ["train", "test"], load)
    for split in SPLITS:
        assert load_labelled("some/news", split).classes == ("x", "y")
    theirs = [name for *_, name in asked]
    assert theirs == ["train[:90%]", "train[90%:]", "test"]
    _fake_hub(monkeypatch, ["other"], load)
    with pytest.raises(CorpusError, match="no split for 'heldout'"):
        load_labelled("some/news", "heldout")


def test_without_a_network(monkeypatch):
    def load(*args, split):
        raise ConnectionError("no route")

    _fake_hub(monkeypatch, ["train"], load)
    with pytest.raises(OfflineError, match=r"neither cached nor reachable.*docstring-topics"):
        load_labelled("some/news", "train")


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(OfflineError, match=r"labkit\[hub\]"):
        load_labelled("some/news", "train")


def test_an_unknown_split():
    for load in (load_labelled, lambda split: topics.load_docstring_topics(split)):
        with pytest.raises(CorpusError, match="unknown split 'test'"):
            load(split="test")
