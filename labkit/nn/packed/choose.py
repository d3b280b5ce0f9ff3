"""Which form a quantized weight takes in memory."""

from __future__ import annotations

from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.core.errors import SchemeError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.quantized import Quantized
from labkit.core.tensor import QuantizedTensor
from labkit.kernels import CodebookPanels, GgufPanels, Int4Panels, Int4Weight, Int8Weight
from labkit.kernels.int8_weight import LONGEST
from labkit.nn.packed.bits import BitsForm
from labkit.nn.packed.codebook import CodebookForm
from labkit.nn.packed.codebook_panels import CodebookPanelsForm
from labkit.nn.packed.float8 import Float8Form
from labkit.nn.packed.floats import FloatForm
from labkit.nn.packed.form import Form
from labkit.nn.packed.gguf import GgufForm
from labkit.nn.packed.int4 import Int4Form
from labkit.nn.packed.int4_panels import Int4PanelsForm
from labkit.nn.packed.int8 import Int8Form
from labkit.nn.packed.panels import PanelsForm

Packed = Int4Weight | Int4Panels | Int8Weight | GgufPanels | CodebookPanels
Packable = Form | Quantized | Packed | Tensor | tuple[Tensor, str]

FORMS: dict[str, type[Form]] = {
    form.kind: form
    for form in (
        Int4Form,
        Int4PanelsForm,
        Int8Form,
        BitsForm,
        CodebookForm,
        CodebookPanelsForm,
        Float8Form,
        GgufForm,
        PanelsForm,
        FloatForm,
    )
}
_WRAPPED = {
    Int4Weight: Int4Form,
    Int4Panels: Int4PanelsForm,
    Int8Weight: Int8Form,
    GgufPanels: PanelsForm,
    CodebookTensor: CodebookForm,
    CodebookPanels: CodebookPanelsForm,
    Float8Tensor: Float8Form,
    Tensor: FloatForm,
}


def form_of(weight: Packable, *, integer_inputs: bool = False) -> Form:
    """The form of a weight [out, in].

    Args:
        weight: a quantized weight, a packed one, GGUF blocks with the name of their type, or a
            matrix of floats.
        integer_inputs: inputs will be 8-bit integers: symmetric 8-bit weights are laid out for the
            integer kernels then.

    Raises:
        SchemeError: a weight of another kind.
        ShapeError: not a matrix.
    """
    if isinstance(weight, tuple):
        weight = GgufForm(*weight)
    if isinstance(weight, GgufForm) and PanelsForm.fits(weight):
        return PanelsForm.packed(weight)
    if isinstance(weight, Form):
        return weight
    if isinstance(weight, CodebookTensor) and CodebookPanels.fits(weight):
        weight = CodebookPanels.from_rows(weight)
    for kind, form in _WRAPPED.items():
        if isinstance(weight, kind):
            return form(weight)
    if not isinstance(weight, QuantizedTensor) or weight.scheme.granularity == "token":
        raise SchemeError(
            f"a {type(weight).__name__} is no weight that labkit packs",
            "form_of",
            "Give a QuantizedTensor, CodebookTensor, Float8Tensor or (blocks, type name).",
        )
    scheme = weight.scheme
    if scheme.bits == 4:
        on_cpu = weight.codes.device.type == "cpu"
        return (Int4PanelsForm if on_cpu else Int4Form).packed(weight)
    plain = scheme.symmetric and scheme.granularity in ("channel", "tensor")
    if integer_inputs and scheme.bits == 8 and plain and weight.shape[-1] <= LONGEST:
        return Int8Form(Int8Weight.from_quantized(weight))
    return BitsForm.packed(weight)
