"""The chapters and projects of the course, in order: what each asks, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One notebook. `minutes` is for the whole of it, `question` what it answers.

    `notebook` is its path in the folder of notebooks, without the ending.
    """

    notebook: str
    minutes: int
    question: str

    @property
    def number(self) -> str:
        """As in "02" or "p2"."""
        return self.name[:2]

    @property
    def name(self) -> str:
        """As in "02_scale_zero_point" or "p2_cnn_int8"."""
        return self.notebook.rsplit("/", 1)[-1]


CHAPTERS = (
    Chapter("00_start_here", 15, "What does quantization cost, here, now?"),
    Chapter("01_dtypes", 75, "What can each format say, and where is it silent?"),
    Chapter("02_scale_zero_point", 60, "How does a real number become an integer, and back?"),
    Chapter("03_per_channel", 90, "How many numbers should share a scale?"),
    Chapter("04_outliers", 100, "Why does INT8 fail on a model that INT8 should fit?"),
    Chapter("05_gptq", 90, "How can rounding one weight repair the error of another?"),
    Chapter("06_awq", 90, "Which weights matter, and who decides?"),
    Chapter("07_gguf", 90, "What is in the file on your laptop?"),
    Chapter("08_qat", 110, "What can training fix that rounding cannot?"),
    Chapter("09_kernels", 100, "Why is 4-bit faster, and when is it not?"),
    Chapter("10_kv_cache_fp8", 90, "What fills the memory when the weights no longer do?"),
)

PROJECTS = (
    Chapter("projects/p2_cnn_int8", 90, "Can a photo classifier run on integers alone?"),
    Chapter("projects/p3_encoder_mixed", 90, "Which layers of an encoder can do with 4 bits?"),
)
"""Labs over several chapters, without numbered exercises."""
