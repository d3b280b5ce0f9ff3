"""What vLLM would say to a folder, by the rules that its loaders assert.

vLLM is built for a GPU, and is not run here: nothing in this file loads a model. It restates, for
one GPU (no tensor parallelism), the checks of vLLM's own sources, so that a folder that vLLM would
refuse is known before it is carried to a GPU. A folder that passes has passed these rules, and no
more than these.

Sources (github.com/vllm-project/vllm, vllm/model_executor/layers/quantization/, read 2026-11):
    utils/marlin_utils.py     _check_marlin_supported, verify_marlin_supports_shape
    gptq_marlin.py            GPTQMarlinConfig: TYPE_MAP, is_gptq_marlin_compatible
    gptq.py                   GPTQConfig, GPTQLinearMethod.create_weights
    awq.py, awq_marlin.py     AWQConfig, AWQMarlinConfig, create_weights
    compressed_tensors/compressed_tensors.py    _get_scheme_from_parts and the _is_... above it
    compressed_tensors/schemes/compressed_tensors_wNa16.py    WNA16_SUPPORTED_BITS
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.core.errors import FormatError
from labkit.core.quantized import Quantized
from labkit.formats import detect, load
from labkit.formats.checkpoint import Checkpoint, read_folder
from labkit.formats.compressed_config import FLOAT, INT, PACK, Settings, from_json

MARLIN_GROUPS = (-1, 32, 64, 128)
MARLIN_ROWS, MARLIN_COLUMNS = 64, 128  # min_thread_n of out, min_thread_k of in
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
GPTQ_KEYS = ("bits", "group_size", "desc_act", "sym")
AWQ_KEYS = ("bits", "group_size", "zero_point")


@dataclass(frozen=True)
class Verdict:
    """What vLLM would make of a folder.

    Args:
        kernel: the path that it would take ("gptq_marlin", "awq", "pack-quantized", …); "" if none.
        refusals: why it would not load; empty if it would.
        remarks: what it would do more slowly, and why.
    """

    kernel: str
    refusals: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether none of the rules is broken."""
        return not self.refusals


def verdict(path: Path | str) -> Verdict:
    """Check a folder against the rules of vLLM's loaders.

    Raises:
        FormatError: labkit itself cannot read the folder.
    """
    name = detect(path)
    quantization, checkpoint = read_folder(path).quantization, load(path)
    if name == "gptq":
        return _gptq(quantization, checkpoint)
    if name == "awq":
        return _awq(quantization, checkpoint)
    if name == "compressed-tensors":
        return _compressed(from_json(quantization, Path(path)), checkpoint)
    raise FormatError(
        f"no rules for {name!r}",
        where=str(path),
        remedy="There are for gptq, awq and compressed-tensors.",
    )


def _gptq(quantization: Mapping[str, object], checkpoint: Checkpoint) -> Verdict:
    missing = _missing(quantization, GPTQ_KEYS)
    if missing:
        return Verdict("", missing)
    bits, size, sym = (quantization[key] for key in ("bits", "group_size", "sym"))
    if (bits, sym) not in ((4, True), (8, True)):
        remark = f"Marlin takes 4 or 8 bits, symmetric; this is {bits} bits, sym={sym}"
    elif size not in MARLIN_GROUPS:
        remark = f"Marlin takes groups of {_list(MARLIN_GROUPS)}; these are {size}"
    else:
        # One layer that does not fit has no other kernel: the method is chosen for the model.
        return Verdict("gptq_marlin", tuple(_marlin_shapes(checkpoint.layers, size)))
    pack = 32 // int(str(bits))
    refusals = []
    for name, (rows, columns) in _shapes(checkpoint.layers):
        if size != -1 and columns % int(str(size)):
            refusals.append(f"{name}: {columns} inputs are no multiple of the group size {size}")
        # 3 bits: vLLM counts in Fraction(32, 3) codes a word, which asks for multiples of 32.
        if rows % (32 if bits == 3 else pack):
            refusals.append(f"{name}: {rows} outputs do not fill whole words of {bits}-bit codes")
    remarks = [remark]
    if bits == 4:
        remarks.append("vLLM itself warns that its 4-bit kernel for this path is buggy")
    return Verdict("gptq", tuple(refusals), tuple(remarks))


def _awq(quantization: Mapping[str, object], checkpoint: Checkpoint) -> Verdict:
    missing = _missing(quantization, AWQ_KEYS)
    if missing:
        return Verdict("", missing)
    size = quantization["group_size"]
    marlin = size in MARLIN_GROUPS
    shapes = tuple(_marlin_shapes(checkpoint.layers, size)) if marlin else ()
    remarks = shapes if marlin else (f"Marlin takes groups of {_list(MARLIN_GROUPS)}, not {size}",)
    if marlin and not shapes:
        return Verdict("awq_marlin")
    # The plain kernel takes the layers that Marlin does not; it knows no group size of -1.
    refusals = []
    for name, (rows, columns) in _shapes(checkpoint.layers):
        if size == -1 or columns % int(str(size)):
            refusals.append(f"{name}: the plain AWQ kernel needs groups that divide {columns}")
        if rows % 8:
            refusals.append(f"{name}: {rows} outputs are no multiple of 8")
    return Verdict("awq", tuple(refusals), remarks)


def _compressed(settings: Settings, checkpoint: Checkpoint) -> Verdict:
    refusals: list[str] = []
    if settings.format == PACK:
        if settings.bits not in (4, 8):
            refusals.append(f"{settings.bits} bits: WNA16 takes 4 and 8")
        if not settings.symmetric and settings.bits != 4:
            refusals.append("asymmetric codes of 8 bits: Marlin has zero-points for 4 alone")
        size = settings.group_size or -1
        if size not in MARLIN_GROUPS:
            refusals.append(f"groups of {size}: Marlin takes {_list(MARLIN_GROUPS)}")
        refusals += _marlin_shapes(checkpoint.layers, size)
    elif settings.format == INT:
        if not settings.symmetric:
            refusals.append("asymmetric INT8 weights: W8A8 takes symmetric ones")
        refusals += _w8a8_inputs(settings)
    elif settings.format == FLOAT and settings.inputs and not settings.inputs.measured:
        pass  # FP8 with inputs by token or by tensor, taken anew: always
    return Verdict(settings.format, tuple(refusals))


def _w8a8_inputs(settings: Settings) -> Iterator[str]:
    if settings.inputs is None:
        yield "INT8 weights without quantized inputs are no scheme in int-quantized"
    elif settings.inputs.measured != (settings.inputs.granularity == "tensor"):
        yield "INT8 inputs are by token, taken anew, or by tensor, measured beforehand"


def _marlin_shapes(layers: Mapping[str, Quantized], size: object) -> Iterator[str]:
    for name, (rows, columns) in _shapes(layers):
        if rows % MARLIN_ROWS or columns % MARLIN_COLUMNS:
            yield (
                f"{name}: [{rows}, {columns}], Marlin takes multiples of "
                f"[{MARLIN_ROWS}, {MARLIN_COLUMNS}]"
            )
        elif isinstance(size, int) and 0 < size < columns and columns % size:
            yield f"{name}: {columns} inputs are no multiple of the group size {size}"


def _shapes(layers: Mapping[str, Quantized]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The matrices that vLLM multiplies with: q, k and v are one of them, gate and up another."""
    fused: dict[str, tuple[int, int]] = {}
    for name in layers:
        parent, _, child = name.rpartition(".")
        together = next((f"{parent}.{'+'.join(part)}" for part in FUSED if child in part), name)
        rows, columns = layers[name].shape
        fused[together] = (fused.get(together, (0, 0))[0] + rows, columns)
    yield from fused.items()


def _missing(quantization: Mapping[str, object], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"config.json lacks {key!r}" for key in keys if key not in quantization)


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
