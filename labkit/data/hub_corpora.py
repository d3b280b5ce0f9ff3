"""Corpora that papers quote, from the Hugging Face hub: only when asked for by name."""

from __future__ import annotations

import os

from labkit.core.errors import OfflineError

# name -> (dataset, configuration or data file, text column)
HUB_CORPORA = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "c4": ("allenai/c4", "en", "text"),
}
# Our split -> theirs. GPTQ and AWQ calibrate on train text and report on test text.
_SPLIT = {"train": "train", "calibration": "train", "heldout": "test"}
_C4_DOCUMENTS = 2048  # c4 is 300 GB; it is streamed, and this many documents are read


def load_hub_corpus(name: str, split: str) -> tuple[str, ...]:
    """Documents of a hub corpus. Raises OfflineError saying what is missing and what to do."""
    dataset, config, column = HUB_CORPORA[name]
    try:
        import datasets
    except ImportError as error:
        raise OfflineError(
            f"corpus {name!r} comes from the hub and needs a package: pip install 'labkit[hub]'"
        ) from error
    theirs = "validation" if (name, split) == ("c4", "heldout") else _SPLIT[split]
    streaming = name == "c4"
    if os.environ.get("HF_HUB_OFFLINE") == "1" and streaming:
        raise OfflineError(f"corpus {name!r} is streamed and HF_HUB_OFFLINE=1 is set; unset it")
    try:
        rows = datasets.load_dataset(dataset, config, split=theirs, streaming=streaming)
        if streaming:
            rows = rows.take(_C4_DOCUMENTS)
        return tuple(row[column] for row in rows if row[column].strip())
    except (OSError, ConnectionError, ValueError) as error:
        raise OfflineError(
            f"corpus {name!r} ({dataset}) is neither cached nor reachable: {error}. "
            "Offline, use 'stdlib-prose', 'stdlib-code' or the path of a text file."
        ) from error
