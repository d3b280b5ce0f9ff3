"""A tokenizer's files, written so that transformers 4 reads them, too.

transformers 5 renamed the class of a tokenizer that is nothing but a tokenizer.json, and writes
the new name, which version 4 does not know. Both know the old one.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEW, _OLD = "TokenizersBackend", "PreTrainedTokenizerFast"
# How the object at hand was made; of no use to who reads the folder.
_PASSING = ("backend", "is_local", "local_files_only")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write tokenizer.json and what belongs to it into ``folder``."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in _PASSING}
    if config.get("tokenizer_class") == _NEW:
        config["tokenizer_class"] = _OLD
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files of `save_tokenizer`: name -> content."""
    with tempfile.TemporaryDirectory(prefix="labkit-tokenizer-") as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
