"""Random tensors that want a gradient, and the gradients of an output by them."""

import torch


def leaf(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    """Normal numbers of standard deviation `spread`; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).requires_grad_()


def gradients(output: torch.Tensor, *leaves: torch.Tensor, seed: int = 9) -> list[torch.Tensor]:
    """The gradient of a random weighting of `output` by each leaf."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return list(torch.autograd.grad(output, leaves, weights))
