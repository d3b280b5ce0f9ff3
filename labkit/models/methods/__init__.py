"""The methods that the block-by-block driver runs, by name."""

from labkit.models.methods.awq import Awq
from labkit.models.methods.gptq import Gptq
from labkit.models.methods.hqq import Hqq
from labkit.models.methods.llm_int8 import LlmInt8
from labkit.models.methods.nf4 import Nf4
from labkit.models.methods.protocol import BlockMethod, Settings
from labkit.models.methods.rtn import Rtn
from labkit.models.methods.smoothquant import SmoothQuant

METHODS: dict[str, type[BlockMethod]] = {
    "rtn": Rtn,
    "gptq": Gptq,
    "awq": Awq,
    "nf4": Nf4,
    "hqq": Hqq,
    "llm_int8": LlmInt8,
    "smoothquant": SmoothQuant,
}

__all__ = [
    "METHODS",
    "Awq",
    "BlockMethod",
    "Gptq",
    "Hqq",
    "LlmInt8",
    "Nf4",
    "Rtn",
    "Settings",
    "SmoothQuant",
]
