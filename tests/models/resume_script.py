"""Run by test_resume.py in a process of its own: forked children are killed, then the run goes on.

    python resume_script.py MODEL_FOLDER WORK_ROOT

Each child ends by SIGKILL, sent to itself at another moment: after the n-th layer, or right before
or after the n-th rename, when a file or a folder is written but not yet in place. The parent has
not used a thread pool yet when it forks.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from tiny_models import tokens

from labkit.core.scheme import QuantScheme
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Gptq
from labkit.models.sources import FolderSource

MOMENTS = [f"layer {n}" for n in (1, 7, 8, 13, 20, 21)]
# run.json; for each block what enters it, three batches and their folder, and the block itself.
MOMENTS += [f"{side} rename {n}" for n in range(1, 17) for side in ("before", "after")]
METHOD = Gptq(QuantScheme(4, granularity="group", group_size=32), loop="plain")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(model: Path, work: Path, moment: str = "") -> object:
    kind, _, number = moment.rpartition(" ")
    renames = 0
    real = {"replace": Path.replace, "rename": Path.rename}

    def counted(how: str, self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if kind == "before rename" and renames == int(number):
            die()
        done = real[how](self, target)
        if kind == "after rename" and renames == int(number):
            die()
        return done

    def tick(name: str, done: int, total: int) -> None:
        if kind == "layer" and done == int(number):
            die()

    for how in real:
        setattr(Path, how, lambda self, target, how=how: counted(how, self, target))
    try:
        return quantize_blockwise(
            model, METHOD, tokens(5, 16), work=work, batch_size=2, progress=tick
        )
    finally:
        for how, method in real.items():
            setattr(Path, how, method)


def killed(model: Path, work: Path, moment: str) -> bool:
    child = os.fork()
    if child == 0:
        run(model, work, moment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def contents(result) -> dict[str, torch.Tensor]:
    parts = {f"{name}.codes": quantized.codes for name, quantized in result.layers.items()}
    parts |= {f"{name}.scale": quantized.scale for name, quantized in result.layers.items()}
    return parts | dict(result.tensors)


def main() -> None:
    torch.set_num_threads(1)
    FolderSource(Path(sys.argv[1]))  # transformers is imported once, not by each child
    model, root = Path(sys.argv[1]), Path(sys.argv[2])
    for moment in MOMENTS:
        assert killed(model, root / moment, moment), f"{moment}: the child was not killed"
    # A run that is killed again and again, each time a little later.
    for number in range(1, 7):
        assert killed(model, root / "often", f"layer {3 * number + 1}")
    whole = run(model, root / "whole")
    expected, figures = contents(whole), [report.figures() for report in whole.reports]
    for moment in [*MOMENTS, "often"]:
        again = run(model, root / moment)
        found = contents(again)
        assert found.keys() == expected.keys(), moment
        assert all(torch.equal(found[name], expected[name]) for name in expected), moment
        assert [report.figures() for report in again.reports] == figures, moment
        left = {path.name for path in (root / moment).iterdir()}
        blocks = {f"block-{index:05}.safetensors" for index in range(3)}
        assert left == {"run.json"} | blocks, f"{moment}: {left}"
    print(f"{len(MOMENTS) + 1} killed runs resumed to the same bits")


if __name__ == "__main__":
    main()
