"""The slider of notebook 05."""

import torch

from labkit.core.scheme import QuantScheme
from labkit.course.widgets_05_row import RowExplorer
from labkit.quantize import gptq
from labkit.quantize.hessian import InputStats


def explorer(columns=10, bits=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, columns, generator=generator)
    hessian = InputStats(columns).add(x @ torch.randn(columns, columns, generator=generator))
    row = torch.randn(columns, generator=generator)
    return row, hessian, RowExplorer(row, hessian.hessian(), bits)


def test_all_columns_rounded_is_what_gptq_finds():
    row, stats, widget = explorer()
    scheme = QuantScheme(3)
    solution = gptq.solve(row[None], stats, scheme, damp=0.0, scale_dtype=torch.float32)
    frames = widget.frames(passing=True)
    torch.testing.assert_close(frames[-1].float(), solution.quantized.dequantize()[0])
    torch.testing.assert_close(float(widget.damage(True)[-1]), solution.loss, rtol=1e-4, atol=1e-4)


def test_rounded_columns_stay_and_free_ones_move():
    _, _, widget = explorer()
    frames = widget.frames(passing=True)
    for done in range(1, len(frames)):
        assert torch.equal(frames[done][: done - 1], frames[done - 1][: done - 1])
    assert not torch.equal(frames[5][5:], frames[0][5:])
    alone = widget.frames(passing=False)
    assert torch.equal(alone[5][5:], alone[0][5:])
    assert float(widget.damage(True)[-1]) < float(widget.damage(False)[-1])


def test_slider_and_switch_redraw():
    _, _, widget = explorer()
    pictures = {widget.picture.value}
    widget.done.value = 4
    pictures.add(widget.picture.value)
    assert "4 columns rounded" in widget.picture.value
    widget.passing.value = False
    pictures.add(widget.picture.value)
    assert len(pictures) == 3
