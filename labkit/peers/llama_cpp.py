"""llama.cpp itself, through llama-cpp-python: run a GGUF file, and quantize one.

It is called through its C interface, so that it can be told what the high-level class hides: keys
and values in float32 instead of float16, and no flash attention. What is left of difference between
it and torch is then its arithmetic alone.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from labkit.core.errors import PeerError, PeerMissingError
from labkit.evaluate.perplexity import Perplexity, windows

_F32 = 0  # ggml's number of the type
_NO_FLASH_ATTENTION = 0
_SAID: deque[str] = deque(maxlen=40)
_CALLBACKS: list[object] = []  # llama.cpp may speak at any time: they must live as long as it


class LlamaCpp:
    """A GGUF file, loaded; a context manager.

    Args:
        context: the longest sequence that will be given.
        threads: for all work.
        exact: float32 keys and values and plain attention; else llama.cpp's defaults.
        watch: called around each operation, as ggml_backend_sched_eval_callback.

    Raises:
        PeerMissingError: llama-cpp-python is not installed.
        PeerError: llama.cpp refuses the file; what it said is in the message.
    """

    def __init__(
        self,
        path: Path | str,
        context: int = 512,
        threads: int = 1,
        *,
        exact: bool = True,
        watch: Callable[[int, bool, object], bool] | None = None,
    ) -> None:
        self._lib = _library()
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        _SAID.clear()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise PeerError(f"llama.cpp refuses it: {_last_words()}", where=str(path))
        options = self._lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = context
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = _F32
            options.flash_attn_type = _NO_FLASH_ATTENTION
        if watch is not None:
            self._watch = self._lib.ggml_backend_sched_eval_callback(watch)  # it must stay alive
            options.cb_eval = self._watch
        self._context = self._lib.llama_init_from_model(self._model, options)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise PeerError(f"llama.cpp makes no context: {_last_words()}", where=str(path))
        self.path = Path(path)
        self.context = context
        vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = self._lib.llama_vocab_n_tokens(vocabulary)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits behind each token of one sequence: float32 [tokens, vocabulary]."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._decode(list(map(int, token_ids)), first=0, every=True)

    def perplexity(
        self, token_ids: Sequence[int], context: int = 256, stride: int | None = None
    ) -> Perplexity:
        """As `labkit.evaluate.perplexity` scores these ids; the first is seen and not scored."""
        stride = context if stride is None else stride
        total, count = 0.0, 0
        for start, end, scored in windows(len(token_ids), context, stride):
            logits = self.logits(token_ids[start : end - 1])[scored - start - 1 :]
            rows = logits.astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            norms = np.log(np.exp(rows).sum(axis=1))
            targets = np.asarray(token_ids[scored:end])
            total += float((norms - rows[np.arange(len(targets)), targets]).sum())
            count += len(targets)
        return Perplexity(total, count, context, stride)

    def generate(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after another, with llama.cpp's cache."""
        return self._generate(token_ids, count)[0]

    def tokens_per_second(self, token_ids: Sequence[int], count: int = 32) -> float:
        """How fast tokens follow the prompt, one at a time."""
        return count / self._generate(token_ids, count + 1)[1]

    def close(self) -> None:
        """Free the model; nothing else may be asked of it."""
        if self._model:
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(self, token_ids: Sequence[int], count: int) -> tuple[list[int], float]:
        """The tokens, and the seconds that those behind the first took."""
        found = [int(self.logits(token_ids)[-1].argmax())]
        began = time.perf_counter()
        while len(found) < count:
            place = len(token_ids) + len(found) - 1
            found.append(int(self._decode(found[-1:], first=place, every=False)[-1].argmax()))
        return found, time.perf_counter() - began

    def _decode(self, ids: list[int], first: int, every: bool) -> np.ndarray:
        if not ids or first + len(ids) > self.context:
            raise PeerError(
                f"{first + len(ids)} tokens in a context of {self.context}", where=str(self.path)
            )
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            raise PeerError(f"token ids beyond {self.vocabulary - 1}", where=str(self.path))
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for row, token in enumerate(ids):
                batch.token[row] = token
                batch.pos[row] = first + row
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = 0
                batch.logits[row] = every or row == len(ids) - 1
            if self._lib.llama_decode(self._context, batch):
                raise PeerError(f"llama.cpp cannot go on: {_last_words()}", where=str(self.path))
        finally:
            self._lib.llama_batch_free(batch)
        rows = len(ids) if every else 1
        found = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=(rows, self.vocabulary)).copy()


def quantize_file(
    path: Path | str,
    out: Path | str,
    file_type: int,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    pure: bool = False,
    threads: int = 1,
) -> None:
    """llama_model_quantize: what llama.cpp itself makes of a float file.

    Args:
        file_type: the number of the mix (labkit.formats.gguf.mix.FILE_TYPES).
        importance: by tensor, float32 [columns].

    Raises PeerError, with what llama.cpp said.
    """
    lib = _library()
    settings = lib.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.pure = threads, file_type, pure
    kept = {name: np.ascontiguousarray(row, np.float32) for name, row in (importance or {}).items()}
    if importance is not None:
        pointer = ctypes.POINTER(ctypes.c_float)
        # The list ends with an entry without a name.
        entries = (lib.llama_model_imatrix_data * (len(kept) + 1))()
        for entry, (name, row) in zip(entries, kept.items(), strict=False):
            entry.name, entry.size = name.encode(), row.size
            entry.data = row.ctypes.data_as(pointer)
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(lib.llama_model_imatrix_data))
    _SAID.clear()
    if lib.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(settings)):
        raise PeerError(f"llama.cpp does not quantize it: {_last_words()}", where=str(path))


@cache
def _library() -> ModuleType:
    """The C interface; what llama.cpp prints is kept in `_SAID` from now on."""
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise PeerMissingError(
            "llama-cpp-python is not installed", "llama_cpp", "`make setup` installs it."
        ) from error

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, data: object) -> None:
        _SAID.append(text.decode(errors="replace"))

    _CALLBACKS.append(keep)
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    return llama_cpp


def _last_words() -> str:
    """The last lines that llama.cpp printed about an error."""
    lines = [line.strip() for line in "".join(_SAID).strip().splitlines()]
    telling = [line for line in lines if "error" in line or "fail" in line]
    return " / ".join((telling or lines)[-3:]) or "without a word"
