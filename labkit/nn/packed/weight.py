"""PackedWeight: a packed weight as a module, so that a model can hold, move and save it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.errors import SchemeError
from labkit.nn.packed.choose import FORMS
from labkit.nn.packed.form import Form


class PackedWeight(nn.Module):
    """A weight [out, in] whose buffers are packed bytes.

    Args:
        form: what the bytes are (`labkit.nn.packed.form_of`).
        dtype: of the activations that it meets; transformers asks for it.

    Attributes:
        shape: [out, in].
        recipe: JSON that makes the form again from the parts (`form_from`).

    Two modules may hold one and the same, as a tied head and its embedding do. Casts of the model
    (`.half()`, `.to(torch.bfloat16)`) leave the bytes alone; devices they follow: a form that is
    laid out for a CPU becomes one for any device then.
    """

    def __init__(self, form: Form, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape = form.shape
        # Empty: there for its dtype, which casts of the model change.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        self._names: tuple[str, ...] = ()
        self._hold(form)

    def _hold(self, form: Form) -> None:
        """Take the form's parts as buffers, in place of those that are held."""
        for name in self._names:
            delattr(self, name)
        self._names = tuple(form.parts())
        about = {"kind": form.kind, "shape": list(form.shape), "parts": list(form.parts())}
        self.recipe = json.dumps({**about, "settings": form.settings()})
        for name, part in form.parts().items():
            self.register_buffer(name, part)
        self._form: Form | None = form

    @property
    def form(self) -> Form:
        """What multiplies: the kernel's view of the buffers."""
        if self._form is None:
            self._form = form_from(self.recipe, self.parts())
        return self._form

    def parts(self) -> list[Tensor]:
        """The buffers, in the order of the recipe."""
        return [self._buffers[name] for name in self._names]

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; of the bytes it says nothing."""
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(part.nbytes for part in self.parts())

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.parts()[0].device

    def linear(self, x: Tensor, bias: Tensor | None = None, activation_bits: int = 16) -> Tensor:
        """x [..., in] @ weight.T + bias, [..., out] in x's dtype; raises what kernels raise."""
        return self.form.linear(x, bias, activation_bits)

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return self.form.dequantize()

    def extra_repr(self) -> str:
        rows, columns = self.shape
        bits = self.nbytes * 8 / (rows * columns)
        return f"{self.form.label}, {rows} x {columns}, {bits:.2f} bits/weight"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        # As bytes they are no floats, so a cast has nothing to convert.
        self.like = fn(self.like)
        if self.like.device.type != self.device.type:
            self._hold(self.form.elsewhere())
        for name, part in zip(self._names, self.parts(), strict=True):
            moved = fn(part.reshape(-1).view(torch.uint8))
            if moved.dtype != torch.uint8:
                raise SchemeError(
                    f"packed bytes cannot become {moved.dtype}", name, "Cast with .to(dtype)."
                )
            self._buffers[name] = moved.view(part.dtype).reshape(part.shape)
        self._form = None
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._form = None

    def get_extra_state(self) -> Tensor:
        """The recipe as bytes: a state dict says what its bytes are."""
        return torch.tensor(list(self.recipe.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the recipe of a state dict. Raises SchemeError for that of another weight."""
        theirs = bytes(state.tolist()).decode()
        if theirs != self.recipe:
            raise SchemeError(f"a state dict of {theirs}", self.recipe, "Load another file.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_form": None}


def form_from(recipe: str, parts: list[Tensor]) -> Form:
    """The form that a `PackedWeight` with this recipe and these parts stands for."""
    about = json.loads(recipe)
    named = dict(zip(about["parts"], parts, strict=True))
    return FORMS[about["kind"]].restored(named, about["settings"])


def shape_from(recipe: str) -> tuple[int, int]:
    """[out, in] of the weight that has this recipe."""
    rows, columns = json.loads(recipe)["shape"]
    return rows, columns
