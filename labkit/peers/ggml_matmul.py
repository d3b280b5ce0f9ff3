"""llama.cpp's own matrix product on a CPU, called in the libraries that llama-cpp-python brings.

As llama.cpp does it: the weight goes into the buffer that repacks it for this processor, where
there is such a packing for its type, and a graph of one node is computed.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from labkit.core.errors import PeerError, PeerMissingError
from labkit.peers.ggml import library_path
from labkit.quantize.gguf_types import block_type

_F32 = 0
_CONTEXT_BYTES = 2**20
_POINTER, _SIZE, _LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
# A C++ function of ggml-cpu/repack.h.
_REPACK = "_Z35ggml_backend_cpu_repack_buffer_typev"


class _InitParams(ctypes.Structure):
    """struct ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, up to what is read here."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", _POINTER),
        ("ne", _LONG * 4),
        ("nb", _SIZE * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _POINTER * 10),
        ("view_src", _POINTER),
        ("view_offs", _SIZE),
        ("data", _POINTER),
        ("name", ctypes.c_char * 64),
        ("extra", _POINTER),
    )


_BASE = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, ctypes.c_int, _LONG, _LONG]),
    "ggml_mul_mat": (_POINTER, [_POINTER] * 3),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER] * 2),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER] * 2),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_cpu_buffer_type": (_POINTER, []),
    "ggml_backend_graph_compute": (ctypes.c_int, [_POINTER] * 2),
    "ggml_backend_free": (None, [_POINTER]),
}
_CPU = {
    "ggml_backend_cpu_init": (_POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [_POINTER, ctypes.c_int]),
}


def _declared(library: ctypes.CDLL, functions: dict) -> ctypes.CDLL:
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """libggml-base and libggml-cpu.

    Raises PeerMissingError where one of them is not there.
    """
    path = library_path()
    other = path.with_name(path.name.replace("ggml-base", "ggml-cpu"))
    if not other.exists():
        raise PeerMissingError("no libggml-cpu", "llama_cpp", "Install llama-cpp-python.")
    return (
        _declared(ctypes.CDLL(str(path)), _BASE),
        _declared(ctypes.CDLL(str(other)), _CPU),
    )


class MatMul:
    """y = x @ weight.T in ggml, for one weight and a fixed number of tokens.

    Args:
        blocks: uint8 [out, bytes of a row].
        type_name: "Q4_0", "Q4_K", …
        tokens: rows of x.
        threads: that ggml uses.

    `repacked` says whether ggml has a packing of its own for this type, processor and shape.

    Raises:
        PeerMissingError: llama-cpp-python is not there.
        PeerError: ggml could not allocate the tensors.
    """

    def __init__(self, blocks: np.ndarray, type_name: str, tokens: int, threads: int) -> None:
        self._base, self._cpu = _libraries()
        kind = block_type(type_name)
        self.rows, self.columns = len(blocks), blocks.shape[1] // kind.nbytes * kind.weights
        self.tokens = tokens
        self._owned: list[tuple[str, int]] = []
        self._weight, self.repacked = self._place_weight(kind.number)
        data = np.ascontiguousarray(blocks)
        self._base.ggml_backend_tensor_set(self._weight, data.ctypes.data, 0, data.nbytes)
        context = self._context()
        new = self._base.ggml_new_tensor_2d
        self._x = new(context, _F32, self.columns, tokens)
        self._y = self._base.ggml_mul_mat(context, self._weight, self._x)
        self._graph = self._base.ggml_new_graph(context)
        self._base.ggml_build_forward_expand(self._graph, self._y)
        self._allocate(context, self._base.ggml_backend_cpu_buffer_type())
        self._backend = self._cpu.ggml_backend_cpu_init()
        self._owned.append(("ggml_backend_free", self._backend))
        self._cpu.ggml_backend_cpu_set_n_threads(self._backend, threads)

    def _context(self) -> int:
        context = self._base.ggml_init(_InitParams(_CONTEXT_BYTES, None, True))
        self._owned.append(("ggml_free", context))
        return context

    def _allocate(self, context: int, kind: int) -> None:
        buffer = self._base.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        if not buffer:
            raise PeerError("ggml could not allocate tensors", "ggml_matmul", "Free some memory.")
        self._owned.append(("ggml_backend_buffer_free", buffer))

    def _place_weight(self, type_number: int) -> tuple[int, bool]:
        kinds = [(self._base.ggml_backend_cpu_buffer_type(), False)]
        if hasattr(self._cpu, _REPACK):
            function = getattr(self._cpu, _REPACK)
            function.restype, function.argtypes = _POINTER, []
            kinds.insert(0, (function(), True))
        for kind, repacked in kinds:
            context = self._context()
            weight = self._base.ggml_new_tensor_2d(context, type_number, self.columns, self.rows)
            self._allocate(context, kind)
            # The repacking buffer leaves `extra` empty where it has nothing for such a tensor.
            if not repacked or _Tensor.from_address(weight).extra:
                return weight, repacked
        raise PeerError("no buffer takes this weight", "ggml_matmul")

    def set(self, x: np.ndarray) -> None:
        """Give it x, float32 [tokens, in]."""
        data = np.ascontiguousarray(x, np.float32)
        if data.shape != (self.tokens, self.columns):
            raise PeerError(f"x has shape {data.shape}", "ggml_matmul")
        self._base.ggml_backend_tensor_set(self._x, data.ctypes.data, 0, data.nbytes)

    def compute(self) -> None:
        """Multiply."""
        if self._base.ggml_backend_graph_compute(self._backend, self._graph) != 0:
            raise PeerError("ggml could not compute the graph", "ggml_matmul")

    def get(self) -> np.ndarray:
        """y, float32 [tokens, out]."""
        out = np.empty((self.tokens, self.rows), np.float32)
        self._base.ggml_backend_tensor_get(self._y, out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        """Free what ggml holds for it."""
        while self._owned:
            name, address = self._owned.pop()
            getattr(self._base, name)(address)
