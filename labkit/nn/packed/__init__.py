"""Packed weights: bytes as a file has them, and the kernel that multiplies with them.

form            what every packed weight can do; the classes below do it
int4, codebook, gguf and int8, bits, float8, floats: rows one after another
int4_panels, codebook_panels, panels: sixteen rows side by side, for a CPU
choose          which of them a quantized weight becomes
weight          the module whose buffers are the bytes
operators       the same calls as operators that torch.compile leaves alone
"""

from labkit.nn.packed.choose import form_of
from labkit.nn.packed.form import Form
from labkit.nn.packed.weight import PackedWeight

__all__ = ["Form", "PackedWeight", "form_of"]
