"""A model without weights, built from config.json, and filled piece by piece from shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit.core.errors import FormatError, ModelError
from labkit.formats.checkpoint import QUANTIZATION
from labkit.formats.reading import open_tensors, read_companions, read_json
from labkit.models.families import family_named

# Buffers that older versions of transformers saved and newer ones compute.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|attn\.bias|attention\.bias|masked_bias)$")

# GPT-NeoX files say embed_out; transformers 5 calls the same tensor lm_head.
_HEADS = ("lm_head.weight", "embed_out.weight")


class Skeleton:
    """A causal LM whose parameters lie on "meta" until they are filled.

    Args:
        folder: config.json and safetensors, in one file or in shards.

    Attributes:
        model: the module, float32, in evaluation mode; its buffers are real.
        places: name in the model -> name in the files (checkpoints of the bare model lack a
            prefix).

    Raises:
        ModelError: an architecture that labkit does not walk, a quantized model, or a config.json
            that disagrees with the tensors.
        FormatError: no safetensors, a pickle, damaged or hostile files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.files = read_companions(folder)
        self.tensors = open_tensors(folder)
        where = str(folder)
        self.family = family_named(self.config.get("model_type"), where)
        if QUANTIZATION in self.config:
            raise ModelError(
                "it is quantized already", where=where, remedy="Give the float checkpoint."
            )
        self._require_possible_depth()
        # First without any memory, whatever numbers config.json asks for: only where all shapes
        # are those of the files is the model built with real buffers.
        with torch.device("meta"):
            shapes = {name: t.shape for name, t in self._build().state_dict().items()}
        self.places = self._match(shapes)
        with parameters_on_meta():
            self.model = self._build().float().eval().requires_grad_(False)

    @torch.no_grad()
    def fill(self, names: Iterable[str]) -> None:
        """Read these parameters and buffers from the files, as float32."""
        for name in names:
            if name in self.places:
                tensor = self.tensors[self.places[name]]
                self._set(name, tensor.float() if tensor.is_floating_point() else tensor)

    def empty(self, names: Iterable[str]) -> None:
        """Put these parameters back to "meta", which frees their memory."""
        for name in names:
            if name in self.places:
                self._set(name, self.model.get_parameter(name).to("meta"))

    def fingerprint(self) -> str:
        """A hash of config.json and of every tensor's name, type, shape and place."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            entry = self.tensors.entry(name)
            digest.update(f"{name} {entry.dtype} {entry.shape} {entry.begin}".encode())
        return digest.hexdigest()

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, own = name.rpartition(".")
        module = self.model.get_submodule(owner)
        setattr(module, own, nn.Parameter(tensor, requires_grad=False))

    def _build(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float32)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (*_refusals(), ArithmeticError, RuntimeError, OSError) as error:
            raise self._disagree(f"transformers cannot build it ({error})") from error

    def _require_possible_depth(self) -> None:
        for key in ("num_hidden_layers", "n_layer"):
            depth = self.config.get(key, 0)
            if not isinstance(depth, int) or depth > len(self.tensors):
                raise self._disagree(f"{key} is {depth!r}, there are {len(self.tensors)} tensors")

    def _match(self, shapes: dict[str, torch.Size]) -> dict[str, str]:
        prefix = self._base_prefix(shapes)
        places = {name: found for name in shapes if (found := self._find(name, prefix))}
        tied = bool(self.config.get("tie_word_embeddings", self._ties_by_default()))
        missing = [n for n in shapes if n not in places and not (tied and _is_head(n))]
        if missing:
            raise self._disagree(f"the files lack {_some(missing)}")
        used = set(places.values())
        strange = [name for name in self.tensors if name not in used and not _COMPUTED.search(name)]
        if strange:
            raise self._disagree(f"config.json knows nothing of {_some(strange)}")
        for name, place in places.items():
            entry = self.tensors.entry(place)
            if entry.shape != tuple(shapes[name]):
                raise self._disagree(
                    f"{place} has shape {list(entry.shape)}, config.json asks for "
                    f"{list(shapes[name])}"
                )
            if not entry.dtype.is_floating_point or entry.dtype.itemsize < 2:
                raise FormatError(
                    f"{place} is {entry.dtype}",
                    where=str(self.folder),
                    remedy="Weights are float16, bfloat16 or float32.",
                )
        return {n: p for n, p in places.items() if not (tied and _is_head(n))}

    def _find(self, name: str, prefix: str) -> str | None:
        bare = name.removeprefix(f"{prefix}.")
        spellings = [name, bare, f"{prefix}.{name}", *(_HEADS if _is_head(name) else ())]
        return next((spelling for spelling in spellings if spelling in self.tensors), None)

    def _base_prefix(self, shapes: dict[str, torch.Size]) -> str:
        """The word that names of the body begin with, and those of the head do not."""
        return next(name.split(".")[0] for name in shapes if not _is_head(name))

    def _ties_by_default(self) -> bool:
        from transformers import CONFIG_MAPPING

        return bool(CONFIG_MAPPING[str(self.config["model_type"])]().tie_word_embeddings)

    def _disagree(self, what: str) -> ModelError:
        return ModelError(
            f"config.json and the tensors disagree: {what}",
            where=str(self.folder),
            remedy="Fetch both again; they must belong together.",
        )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside get parameters without memory, and buffers with.

    Buffers (rotary frequencies) are computed when a module is built and are in no file, so
    `torch.device("meta")`, which empties them too, would lose them.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _refusals() -> tuple[type[Exception], ...]:
    """What transformers raises for a config.json with values that make no sense."""
    from huggingface_hub import errors

    # Newer versions check the types of all settings, with an error of their own.
    strict = getattr(errors, "StrictDataclassError", ValueError)
    return (ValueError, TypeError, KeyError, AttributeError, strict)


def _is_head(name: str) -> bool:
    return name in _HEADS


def _some(names: list[Any]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(str, sorted(names)[:3]))}{more}"
