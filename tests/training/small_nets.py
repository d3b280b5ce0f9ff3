"""A small convolution net, and batches of token ids as a function of the step."""

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """conv, norm, relu, conv, norm, a residual, and a classifier; [n, 3, 8, 8] to [n, 4]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for norm in (self.bn1, self.bn2):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.1, 0.5)
            norm.num_batches_tracked.fill_(5)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.bn1(self.conv1(x)))
        second = torch.relu(self.bn2(self.conv2(first)) + first)
        return self.head(second.mean((2, 3)))


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def token_batch(step: int) -> Tensor:
    """int64 [4, 13], the same for the same step; few different tokens, so that they are learned."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, 8, (4, 1), generator=generator)
    return (starts + torch.arange(13)) % 8 + 3
