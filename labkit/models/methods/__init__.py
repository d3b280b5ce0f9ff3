"""The methods that the block-by-block driver runs, by name."""

from labkit.models.methods.gptq import Gptq
from labkit.models.methods.protocol import BlockMethod, Settings
from labkit.models.methods.rtn import Rtn

METHODS: dict[str, type[BlockMethod]] = {
    "rtn": Rtn,
    "gptq": Gptq,
}

__all__ = ["METHODS", "BlockMethod", "Gptq", "Rtn", "Settings"]
