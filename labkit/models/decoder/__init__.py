"""`labkit.nn.decoder.Decoder` out of a GGUF file or a model in memory."""

from labkit.models.decoder.from_gguf import decoder_from_gguf
from labkit.models.decoder.from_model import decoder_from_model

__all__ = ["decoder_from_gguf", "decoder_from_model"]
