"""Observers: which range of real numbers the integers should cover.

A wide range rounds coarsely, a narrow one clips. The five differ in how they choose:

    MinMaxObserver       everything seen; nothing is clipped
    EMAObserver          a moving average of each batch's range
    PercentileObserver   all but a fixed share of the values
    MSEObserver          the least squared error
    KLObserver           the least information lost

    observer.observe(x)                       add a batch
    observer.range(bits, symmetric)           -> (lo, hi)
    observer.qparams(bits, symmetric)         -> (scale, zero_point)
"""

from labkit.core.observers_base import Observer
from labkit.core.observers_kl import KLObserver
from labkit.core.observers_minmax import EMAObserver, MinMaxObserver
from labkit.core.observers_mse import MSEObserver
from labkit.core.observers_percentile import PercentileObserver

OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "ema": EMAObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "kl": KLObserver,
}

__all__ = [
    "OBSERVERS",
    "EMAObserver",
    "KLObserver",
    "MSEObserver",
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
]
