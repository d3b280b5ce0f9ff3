# %% [markdown]
# # P2 · A photo classifier on integers
#
# **Can a photo classifier run on integers alone, and how do you know that it may?**
#
# **You will be able to**
# - quantize a convolution net to static INT8: fold, calibrate, convert
# - choose how many images calibrate, and what makes a range
# - read a layer-wise error table, and say which layer to look at
# - say when training is needed, and do it
# - ship integers to ONNX Runtime and show that they are the same
#
# **Time:** 90 minutes · **Before this:** [02_scale_zero_point](../02_scale_zero_point.ipynb),
# [03_per_channel](../03_per_channel.ipynb)

# %%
import copy
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from labkit.core.errors import LabkitError
from labkit.core.metrics import sqnr_db
from labkit.core.observers import KLObserver, MinMaxObserver, PercentileObserver
from labkit.core.scheme import QuantScheme
from labkit.course import figures

# %%
from labkit.course.prediction import predict
from labkit.data.images import load_images
from labkit.evaluate.images import accuracy, logits_of
from labkit.evaluate.interleaved import interleaved_ms
from labkit.evaluate.onnx_session import OnnxSession
from labkit.models.resnet import ResNet
from labkit.study import results
from labkit.study.images_peers import torch_int8
from labkit.training.convert import convert
from labkit.training.images import FLOAT, QAT, train_images
from labkit.training.layer_errors import layer_errors
from labkit.training.onnx_export import export_float, export_integers
from labkit.training.static import (
    calibrate,
    prepare_static,
    stored_places,
    with_integer_biases,
    without_rounding,
)

# %% [markdown]
# ## The images
#
# 1797 handwritten digits of 8 × 8 pixels come with scikit-learn. The first 1000 train the net; 797
# that it never sees test it. Calibration needs images but no labels, so it takes them from the
# training part.

# %%
data = load_images("digits")
print("channels, height, width:", data.shape, "· classes:", len(data.classes))
print(f"{len(data.train)} to train, {len(data.calibration)} to calibrate, {len(data.test)} to test")

# %%
fig, axes = figures.new(2, 8, size=(6.4, 1.9))
for ax, pixels, label in zip(axes.flat, data.test.pixels(), data.test.labels, strict=False):
    ax.imshow(pixels[0], cmap="gray_r", vmin=0, vmax=1)
    ax.set_title(int(label), loc="center")
    ax.axis("off")
figures.show(fig, alt="Sixteen grey test images of 8 by 8 pixels, each above its right digit.")

# %% [markdown]
# ## The net
#
# A small residual net: a convolution, three blocks, a linear layer. It is trained right here, with
# the trainer that later trains through the rounding.

# %%
net = ResNet(channels=1, classes=10, widths=(16, 32, 64))
print(f"{sum(p.numel() for p in net.parameters())} parameters")
print(net.stages[1])

# %% tags=["nbval-ignore-output"]
history = train_images(net, data.train, FLOAT)
exact = accuracy(net, data.test)
print(f"right: {exact.value:.1%} ± {exact.error:.1%} of {len(data.test)} images")
assert exact.value > 0.94

# %% [markdown]
# The figure after ± is one *standard error*, √(p (1 − p) / n): what another 797 images would
# change. Without it, "INT8 loses 0.3 %" means nothing.

# %%
losses = [row["loss"] for row in history if "loss" in row]
fig, ax = figures.new()
ax.plot(range(1, len(losses) + 1), losses)
ax.set(yscale="log", xlabel="step", ylabel="cross-entropy of the batch (log)")
figures.show(fig, alt="The training loss falls by more than a factor of ten, on a log axis.")
assert np.mean(losses[-10:]) < losses[0] / 10

# %% [markdown]
# ## Step 1: fold the batch norms
#
# At inference a batch norm is one factor and one offset for each channel. Both go into the
# convolution before it: factor · W, and a bias. What gets rounded is that *product*, so fold first,
# quantize then.

# %%
prepared = prepare_static(net, QuantScheme(8, True, "channel"), QuantScheme(8, False, "tensor"))
folded = without_rounding(prepared)
modules = Counter(type(module).__name__ for module in folded.modules())
print("batch norms left:", modules["BatchNorm2d"], "· convolutions:", modules["Conv2d"])
wanted, given = logits_of(net, data.test), logits_of(folded, data.test)
print("the same logits:", torch.allclose(wanted, given, atol=1e-3))

# %% [markdown]
# Folding has a price: the factors differ from channel to channel, and with them the size of the
# weights. Here is the largest |weight| of each output channel of one folded convolution.

# %%
conv = folded.stages[1].conv2
peaks = conv.weight.abs().amax((1, 2, 3))
fig, ax = figures.new()
ax.bar(range(len(peaks)), peaks.sort(descending=True).values)
ax.axhline(float(peaks.max()), color=figures.PALETTE[1], label="range of one scale for all")
ax.set(xlabel="output channel, sorted", ylabel="largest |weight|", ylim=(0, 1.25 * peaks.max()))
ax.legend(loc="upper right")
figures.show(
    fig,
    alt="Bars fall steadily from the loudest channel to the quietest; one scale for all channels "
    "would have to reach the top of the first.",
)
assert peaks.min() < 0.7 * peaks.max()

# %% [markdown]
# A scale per *output channel* fits each bar, and still leaves the sum: it multiplies one output,
# whatever the input was. For the inputs of a convolution that is not so; they have one scale in
# all.

# %% [markdown]
# ## Step 2: where does it round?
#
# Every convolution rounds what it reads. A residual sum reads two tensors, so both sides round too.
# Otherwise the net would have to carry floats past its integers.

# %%
static = [name for name, module in prepared.named_modules() if name.endswith("input_quant")]
print("read by layers:", *static, sep="\n    ")
print("read by sums and means:", *stored_places(prepared), sep="\n    ")

# %% [markdown]
# None of them knows its range yet. A net that was never calibrated cannot be shipped by accident:

# %%
try:
    convert(prepared)
except LabkitError as error:
    print(type(error).__name__, "·", error)

# %% [markdown]
# ## Step 3: calibrate
#
# Show the *float* net some images, watch each of these tensors, choose a range. Guess first:

# %%
guess_count = predict(
    "How many images does INT8 calibration of this net need before it is as good as with 1000?",
    ["about 50", "about 200", "all 1000"],
)

# %%
images = data.calibration.first(200).pixels()
seen = []
hook = folded.stages[1].conv2.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
folded(images)
hook.remove()
values = seen[0].flatten()
zeros = float((values == 0).float().mean())
print("zeros behind the relu: more than a quarter:", zeros > 0.25)

# %% [markdown]
# Three ways to choose a range for 8 bits. *Min-max* clips nothing it saw. *Percentile* leaves out
# the last 0.1 %. *KL* takes the clip whose histogram loses least information (TensorRT's way).

# %%
kinds = {"min-max": MinMaxObserver, "percentile": PercentileObserver, "KL": KLObserver}
ranges = {}
for name, kind in kinds.items():
    observer = kind()
    observer.observe(values)
    ranges[name] = float(observer.range(8, False)[1])
print("percentile clips:", ranges["percentile"] < ranges["min-max"])

# %%
fig, ax = figures.new()
ax.hist(values[values > 0].numpy(), bins=120, color="0.75")
for (name, high), colour in zip(ranges.items(), figures.PALETTE, strict=False):
    ax.axvline(high, color=colour, label=name)
ax.set(yscale="log", xlabel="value behind the relu", ylabel="how often (log)")
ax.legend(title="range ends at", loc="upper center")
figures.show(
    fig,
    alt="Positive activations thin out to a long tail; min-max reaches its end, percentile and KL "
    "stop before or at it.",
)

# %%
calibrate(prepared, [images], MinMaxObserver)
quant = prepared.stages[1].conv2.input_quant
scale, zero_point = quant.qparams()
print("zero-point behind a relu:", int(zero_point))
print("the scale is the range over 255:", bool(torch.isclose(scale * 255, quant.hi)))

# %% [markdown]
# ## Step 4: what did it cost?
#
# The same 797 images decide before and after. Only images on which the two nets *disagree* in
# being right say anything about the difference, so its error is much smaller than ± above.


# %%
def quantized(bits, granularity, observer=MinMaxObserver, count=200, inputs=8):
    """The net with weights of `bits` bits and activations of `inputs`, calibrated."""
    new = prepare_static(
        net, QuantScheme(bits, True, granularity), QuantScheme(inputs, False, "tensor")
    )
    calibrate(new, [data.calibration.first(count).pixels()], observer)
    return new


# %%
def row(label, model):
    """Print accuracy, its change against the float net, and the logits' signal to noise."""
    found, noise = accuracy(model, data.test), sqnr_db(wanted, logits_of(model, data.test))
    change, error = found.minus(exact)
    print(f"{label:20} {found.value:7.2%}  {change:+7.2%} ± {error:.2%}  {noise:5.1f} dB")
    return change, noise


# %% tags=["nbval-ignore-output"]
costs = {}
for bits in (8, 4, 3):
    for granularity in ("channel", "tensor"):
        label = f"W{bits}A8 per {granularity}"
        costs[bits, granularity] = row(label, quantized(bits, granularity))

# %%
eight = min(costs[8, granularity][0] for granularity in ("channel", "tensor"))
print("8 bits cost less than 1.5 right answers in 100:", eight > -0.015)
for bits in (4, 3):
    better = costs[bits, "channel"][1] > costs[bits, "tensor"][1]
    print(f"{bits} bits: logits are nearer with one scale a channel:", better)
    assert better
assert eight > -0.015

# %% [markdown]
# ## The whole grid, recorded
#
# Bits, scales, ranges and 50 to 1000 images: `labkit study images` measured all of them on the
# same net, and keeps them in `data/results/study-images.json`.

# %%
study = results.load("images")
rows = study["ptq"]
names = list(dict.fromkeys((r["weights"], r["inputs"], r["granularity"], r["range"]) for r in rows))
counts = sorted({r["images"] for r in rows})
print(f"float net: {study['float']['accuracy']:.1%} ± {study['float']['error']:.1%}")
print("change in points" + 16 * " " + "".join(f"{count:>13}" for count in counts))
for name in names:
    found = [r for r in rows if (r["weights"], r["inputs"], r["granularity"], r["range"]) == name]
    cells = [f"{100 * r['change']:+.1f} ± {100 * r['change_error']:.1f}" for r in found]
    label = f"W{name[0]}A{name[1]} {name[2]}, {name[3]}"
    print(f"{label:32}" + "".join(f"{cell:>13}" for cell in cells))

# %%
w8a8 = [r for r in rows if (r["weights"], r["inputs"]) == (8, 8)]
worst = min(r["change"] for r in w8a8 if r["images"] == 50)
inside = all(abs(r["change"]) <= max(0.01, 2 * r["change_error"]) for r in w8a8)
print("INT8, any range, any number of images: within a point or two errors:", inside)
guess_count.compare("50 images do, as accuracy sees it", correct="about 50")
assert inside and worst > -0.01

# %% [markdown]
# The signal-to-noise of the logits sees what accuracy hides. The same record, weights in 8 bits and
# one scale a channel; on the left activations in 8 bits, on the right in 4.

# %%
fig, axes = figures.new(1, 2, size=(6.8, 3.2))
noise = {}
for ax, inputs in zip(axes, (8, 4), strict=True):
    for name in ("minmax", "percentile", "kl"):
        key = (8, inputs, "channel", name)
        line = [r for r in rows if (r["weights"], r["inputs"], r["granularity"], r["range"]) == key]
        noise[inputs, name] = [r["logits_db"] for r in line]
        ax.plot(counts, noise[inputs, name], "o-", label=name)
    ax.set(xscale="log", xlabel="calibration images (log)", title=f"activations in {inputs} bits")
    ax.set_xticks(counts, counts)
    ax.minorticks_off()
axes[0].set(ylabel="logits against FP32, dB")
axes[1].legend(title="range")
alt = "Left, 8 bits: min-max on top, percentile far below, KL climbs with the number of images. "
figures.show(fig, alt=alt + "Right, 4 bits: min-max lies lowest and falls.")

# %%
eight, four = ({n: noise[b, n] for n in ("minmax", "percentile", "kl")} for b in (8, 4))
print("8 bits: clipping 0.1 % costs", f"{eight['minmax'][-1] - eight['percentile'][-1]:.0f} dB")
print("8 bits: KL with 50 images lacks", f"{eight['kl'][-1] - eight['kl'][0]:.0f} dB")
print("4 bits: not clipping costs", f"{four['percentile'][-1] - four['minmax'][-1]:.0f} dB")
print("4 bits: min-max gets worse with more images:", four["minmax"][-1] < four["minmax"][0])
assert four["minmax"][-1] < four["minmax"][0] and eight["minmax"][-1] > eight["percentile"][-1]

# %% [markdown]
# With 256 codes rounding is cheap, and every clipped value hurts: keep the range. With 16 codes
# rounding is dear: clip. And the maximum of more images only grows, so min-max then gets *worse*
# with more data. There is no best range, only one for your bits.

# %% [markdown]
# ## Which layer loses it?
#
# Two figures for each layer. *Own*: the layer alone is rounded, and reads floats. *Total*: all are
# rounded, so it reads the errors of those before it. A layer with a bad *own* error is the one to
# keep in more bits.

# %%
tables = {g: layer_errors(quantized(8, g), data.test.pixels()) for g in ("channel", "tensor")}
fig, ax = figures.new(size=(6.8, 3.6))
places = np.arange(len(tables["channel"]))
for (granularity, table), colour in zip(tables.items(), figures.PALETTE, strict=False):
    ax.plot(places, [r.own_db for r in table], "o-", color=colour, label=f"own, {granularity}")
    ax.plot(places, [r.total_db for r in table], "s--", color=colour, label=f"total, {granularity}")
ax.set_xticks(places, [r.name for r in tables["channel"]], rotation=40, ha="right")
ax.set(ylabel="signal to noise, dB")
ax.legend(ncols=2)
figures.show(
    fig,
    alt="Each layer alone keeps about 40 dB; with all layers rounded the figure falls from layer "
    "to layer by several dB, and rises again at the head.",
)

# %% tags=["nbval-ignore-output"]
for r in tables["channel"]:
    print(f"{r.name:22} own {r.own_db:5.1f} dB   total {r.total_db:5.1f} dB   cos {r.cosine:.5f}")
assert tables["channel"][0].own_db == tables["channel"][0].total_db
assert tables["channel"][-2].total_db < tables["channel"][0].total_db

# %% [markdown]
# ## When calibration is not enough
#
# At 8 bits nothing is left to repair. At 3 bits a lot is. Training *through* the rounding
# ([08_qat](../08_qat.ipynb)) starts from the calibrated net and takes a few seconds.

# %%
guess_qat = predict(
    "3-bit weights, one scale a channel. How much of the accuracy that was lost comes back?",
    ["under half", "most of it"],
)

# %% tags=["nbval-ignore-output"]
low = quantized(3, "channel", count=1000)
before = row("W3A8, calibrated", low)
train_images(low, data.train, replace(QAT, steps=80))
after = row("W3A8, trained", low)
assert after[1] > before[1] and after[0] > -0.03

# %%
lost, left = -before[0], -after[0]
most = left < 0.5 * lost or lost < 0.02
guess_qat.compare(
    "most of it" if most else "under half", correct="most of it" if most else "under half"
)

# %% [markdown]
# A fair comparison trains the float net for as many further steps: what it gains by that is no
# merit of quantization. The record has that row, and where training stops to help.

# %%
for r in study["qat"]:
    cells = [
        f"{100 * r[k]['change']:+6.1f} ± {100 * r[k]['change_error']:.1f}" if k in r else 12 * " "
        for k in ("before", "after")
    ]
    print(f"{r['setting']:20} calibrated {cells[0]:14} trained {cells[1]}")

# %%
trained = {r["setting"]: r for r in study["qat"] if "before" in r and "after" in r}
gained = {k: r["after"]["change"] - r["before"]["change"] for k, r in trained.items()}
few = [gain for name, gain in gained.items() if name.startswith(("W2", "W3", "W4"))]
print("training helped wherever weights have 4 bits or fewer:", min(few) > 0)
print("and wherever calibration lost more than a point:", min(gained.values()) > 0)
assert few and min(few) > 0

# %% [markdown]
# ## Integers, really
#
# So far floats were rounded to a grid. `convert` keeps codes: int8 weights, uint8 activations, sums
# of products of integers. The sums are exact; only float sums round.

# %%
prepared = quantized(8, "channel")
converted = convert(prepared)
layer = converted.model.stages[0].conv1
print(converted.layers["stages.0.conv1"])
print(
    "codes of one 3 x 3 kernel:",
    layer.quantized.codes[0, 0].dtype,
    layer.quantized.codes[0, 0].shape,
)
fake, integers = logits_of(prepared, data.test), logits_of(converted.model, data.test)
same = float((fake.argmax(1) == integers.argmax(1)).double().mean())
print("the same answers:", same > 0.995, "· logits agree to 45 dB:", sqnr_db(integers, fake) > 45)

# %% [markdown]
# One output pixel by hand: take the codes that the layer reads, subtract the zero-point, multiply
# by the kernel's codes, add up, scale once.

# %%
reads = []
hook = layer.register_forward_pre_hook(lambda module, inputs: reads.append(inputs[0]))
converted.model(data.test.pixels(slice(0, 1)))
hook.remove()
codes = layer.activation(reads[0])
patch = codes.codes[0, :, 2:5, 2:5].long() - codes.zero_point.long().reshape(1, 1, 1)
total = int((patch * layer.quantized.codes[0].long()).sum())
by_hand = total * float(codes.scale) * float(layer.quantized.scale[0]) + float(layer.bias[0])
print("the layer's own output:", abs(by_hand - float(layer(reads[0])[0, 0, 3, 3])) < 1e-5)

# %% [markdown]
# ## Ship it: ONNX
#
# In an ONNX file, QuantizeLinear and DequantizeLinear nodes hold *our* scales and zero-points;
# weights are int8 and biases int32. ONNX Runtime fuses them into integer convolutions.

# %%
folder = Path(tempfile.mkdtemp())
export_float(prepared, data.shape, folder / "float.onnx")
export_integers(prepared, data.shape, folder / "int8.onnx")
float_onnx, int8_onnx = OnnxSession(folder / "float.onnx"), OnnxSession(folder / "int8.onnx")
print("FP32 parity:", torch.allclose(logits_of(float_onnx, data.test), wanted, atol=1e-3))

# %%
theirs = logits_of(int8_onnx, data.test)
ours = logits_of(convert(with_integer_biases(prepared)).model, data.test)
parity, cost = sqnr_db(ours, theirs), sqnr_db(wanted, ours)
print("INT8 parity beats 50 dB:", parity > 50)
print("rounding itself costs far more:", cost < parity - 10)
print("the same answers:", float((ours.argmax(1) == theirs.argmax(1)).double().mean()) > 0.995)
assert parity > 50 and cost < parity - 10

# %% [markdown]
# Both add biases as int32 here. Why is parity not perfect? A sum that lands on the edge between
# two codes falls to either side, by the last bit of a float. One code in a thousand moves by one
# step.

# %% [markdown]
# ## Beside PyTorch's own INT8
#
# The same net and images through `torch.ao.quantization`, and through ONNX Runtime's
# `quantize_static`. The record says how near each comes to the float net.

# %% tags=["nbval-ignore-output"]
x86 = torch_int8(net, images)
ours_change, _ = row("labkit", converted.model)
x86_change, _ = row("PyTorch x86", x86)
assert ours_change >= x86_change - 0.015

# %%
for r in study["engines"]:
    print(f"{r['engine']:36} {r['accuracy']:.1%} ± {r['error']:.1%}  {r['logits_db']:6.1f} dB")
ours_db = next(r["logits_db"] for r in study["engines"] if r["engine"] == "labkit, integers")
pytorch = [r["logits_db"] for r in study["engines"] if r["engine"].startswith("PyTorch")]
print("ours is nearest to the float net, or within 1 dB:", ours_db > max(pytorch) - 1)
assert ours_db > max(pytorch) - 1

# %% [markdown]
# PyTorch's default for x86 keeps activations to 7 bits: on processors without VNNI the instruction
# that multiplies uint8 by int8 adds two products in 16 bits, and stops at 32767.

# %% [markdown]
# ## Size and speed
#
# Bytes fall to a fourth. Time does not follow by itself: on 8 × 8 images a call is mostly
# bookkeeping. Guess who wins at batch 1:

# %%
guess_speed = predict(
    "Digits, one image at a time on this CPU. Is ONNX Runtime's INT8 faster than its FP32?",
    ["yes", "no"],
)

# %%
for name, size in study["bytes"].items():
    share = size["integers"] / size["float32"]
    files = size["integers_onnx"] / size["float32_onnx"]
    print(f"{name:18} {size['integers']:7} bytes, {share:.0%} of float32; ONNX file {files:.0%}")

# %% tags=["nbval-ignore-output"]
one, many = data.test.pixels(slice(0, 1)), data.test.pixels(slice(0, 64))
engines = {
    "PyTorch": folded,
    "PyTorch x86 INT8": x86,
    "ONNX FP32": float_onnx,
    "ONNX INT8": int8_onnx,
}
for batch in (one, many):
    calls = {name: partial(engine, batch) for name, engine in engines.items()}
    with torch.inference_mode():
        times = interleaved_ms(calls, 20)
    print(f"batch {len(batch):2}:", ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items()))
    if batch is one:
        faster = "yes" if times["ONNX INT8"] < times["ONNX FP32"] else "no"
guess_speed.compare(faster, correct=faster)
assert min(times.values()) > 0

# %% tags=["nbval-ignore-output"]
for r in study["latency"]:
    print(f"{r['net']:18} {r['engine']:32} batch {r['batch']:2}  {r['ms']:8.3g} ms")
print("recorded on:", study["made_with"]["cpu"], "· threads:", study["made_with"]["threads"])
assert all(r["ms"] > 0 for r in study["latency"])

# %% [markdown]
# ## What breaks this
#
# **One bad calibration image.** Somebody forgets to divide one image of 200 by 255. Min-max
# believes it; a percentile does not.

# %% tags=["nbval-ignore-output"]
spoiled = images.clone()
spoiled[17] *= 255
broken = {}
for name, observer in (
    ("min-max", MinMaxObserver),
    ("percentile", partial(PercentileObserver, 99.0)),
):
    new = prepare_static(net)
    calibrate(new, [spoiled], observer)
    broken[name] = row(f"spoiled, {name}", new)

# %%
print("min-max loses more than 20 points:", broken["min-max"][0] < -0.2)
print("the percentile survives:", broken["percentile"][0] > broken["min-max"][0] + 0.1)
assert broken["min-max"][0] < -0.2 and broken["percentile"][0] > broken["min-max"][0] + 0.1

# %% [markdown]
# **A loud channel.** Multiply one channel of a convolution by 200 and divide the next layer's by
# 200: relu lets the factor through, so the float net stays the same. Depthwise nets look like
# this without anybody's help.

# %%
loud = copy.deepcopy(net)
block = loud.stages[0]
with torch.no_grad():
    block.norm1.weight[0] *= 200
    block.norm1.bias[0] *= 200
    block.conv2.weight[:, 0] /= 200
print("the same float net:", torch.allclose(logits_of(loud, data.test), wanted, atol=1e-2))

# %% tags=["nbval-ignore-output"]
hurt = {}
for label, source in (("as trained", net), ("a loud channel", loud)):
    new = prepare_static(source)
    calibrate(new, [images])
    hurt[label] = row(label, new)

# %%
print("INT8 loses more than 6 dB by it:", hurt["a loud channel"][1] < hurt["as trained"][1] - 6)
assert hurt["a loud channel"][1] < hurt["as trained"][1] - 6

# %% [markdown]
# A scale per output channel saves the *weights* of the loud channel. Its *activation* shares one
# scale with 15 quiet ones, which now use a handful of codes. The cure is to shrink it again before
# quantizing: cross-layer equalization.

# %% [markdown]
# **A histogram where there is none.** Pixels take 17 values here. KL at 4 bits finds a clip that
# keeps a single filled bin: a perfect match, and a black image. `calibrate` knows the range of
# images for that reason.

# %%
new = prepare_static(net, QuantScheme(8, True, "channel"), QuantScheme(4, False, "tensor"))
calibrate(new, [images], KLObserver, image_range=None)
print("pixels reach 1; KL at 4 bits ends below a tenth:", float(new.conv.input_quant.hi) < 0.1)
calibrate(new, [images], KLObserver)
print("known beforehand:", float(new.conv.input_quant.hi))

# %% [markdown]
# **Statistics that nobody collected**, and a class that is missing:

# %%
for attempt in (
    lambda: prepare_static(ResNet(1, 10)),
    lambda: train_images(net, replace(data.train, labels=torch.zeros(1000, dtype=torch.int64))),
    lambda: replace(data.train, labels=None),
):
    try:
        attempt()
    except LabkitError as error:
        print(type(error).__name__, "·", error)

# %% [markdown]
# ## Your own images
#
# One folder for each class, as ImageNet has them; or CIFAR-10's binary version. Nothing else
# changes:
#
# ```python
# data = load_images("cifar-10-batches-bin")            # 32 x 32
# net = ResNet(3, 10, (16, 32, 64), blocks=3)           # ResNet-20
# data = load_images("imagenet", size=224)              # train/CLASS/*.jpg, val/CLASS/*.jpg
# net = ResNet(3, 1000, (64, 128, 256, 512), blocks=2, large_images=True)  # ResNet-18
# ```

# %% [markdown]
# Here with a folder made on the spot: zeros and ones as PNG files.

# %%
from PIL import Image

own = Path(tempfile.mkdtemp())
for part, source in (("train", data.train), ("val", data.test)):
    for label in (0, 1):
        (own / part / f"digit {label}").mkdir(parents=True)
        for index in (source.labels == label).nonzero().flatten()[:40].tolist():
            pixels = (source.pixels(slice(index, index + 1))[0, 0] * 255).byte().numpy()
            Image.fromarray(pixels).save(own / part / f"digit {label}" / f"{index}.png")
mine = load_images(own, size=16)
print(mine.shape, mine.classes, len(mine.train), len(mine.test))

# %%
small = ResNet(mine.shape[0], len(mine.classes), (8, 16))
train_images(small, mine.train, replace(FLOAT, steps=60), size=32)
new = prepare_static(small)
calibrate(new, [pixels for pixels, _ in mine.calibration.first(50).batches(25)])
found = accuracy(convert(new).model, mine.test)
print("integers tell zero from one:", found.value > 0.9)
assert found.value > 0.9

# %% [markdown]
# On photographs, also pass `flip=True` to `train_images`, train for thousands of steps, and measure
# on at least 10 000 test images: with 797, changes below half a point are noise.

# %% [markdown]
# ## Explain it in an interview

# %% [markdown] tags=["interview"]
# **You must ship ResNet-50 in INT8. What do you do, in which order?**
#
# <details><summary>A model answer</summary>
#
# Fix the metric and its error bar first: top-1 on the full validation set, and the paired
# difference. Fold batch norms. Weights symmetric with a scale per output channel, activations
# asymmetric with one scale per tensor, min-max or percentile from a few hundred training images
# that look like production traffic. Round both inputs of each residual sum, or the graph falls
# back to float there. Measure. If the drop exceeds one point, make a layer-wise table: each layer
# rounded alone, signal to noise of its output. Keep the worst one or two layers (often first and
# last) in 16 bits, try another range, then equalize channels. Only then train: a short QAT from
# the calibrated net at a low rate. Export with the same scales, check parity of the integers in
# the target runtime, and time it there: INT8 is a size until a kernel makes it a speed.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why do weights get a scale per channel and activations only one?**
#
# <details><summary>A model answer</summary>
#
# A scale is free where it can leave the sum. An output of a convolution is a sum over input
# channels and kernel places. The weight scale of *its* output channel is the same for all terms,
# so it is multiplied once, after the integer sum. A scale per input channel differs from term to
# term: it would have to be multiplied inside, and the sum would be no integer sum any more. Per
# image or per token is possible for activations, as it belongs to the output's row, but a static
# engine wants to know it beforehand. Folded batch norms make channels of weights differ widely,
# so per-channel weights matter most in nets with depthwise convolutions.
#
# </details>

# %% [markdown] tags=["interview"]
# **How many calibration images, and which?**
#
# <details><summary>A model answer</summary>
#
# Enough for each tensor's range to settle: 50 to 1000. More mostly pushes min-max outwards, since
# a maximum only grows. What matters is that they look like production: all classes, the same
# preprocessing, the same cameras. A single image on another scale ruins min-max. They need no
# labels, and must not come from the test set, because then the test set has shaped the model. I
# check by calibrating with two disjoint sets: if accuracy differs by more than its error, there
# are too few, or a range method that listens to outliers.
#
# </details>

# %% [markdown] tags=["interview"]
# **INT8 lost 0.4 points on 1000 test images. Is that a regression?**
#
# <details><summary>A model answer</summary>
#
# Four images. The standard error of an accuracy near 95 % on 1000 images is 0.7 points, but both
# nets saw the same images, so the right error is the paired one: with b images only the float net
# got right and c only INT8 did, the difference is (b − c)/n with error √(b + c − (b − c)²/n)/n. If
# b = 7 and c = 3, that is 0.4 ± 0.3: about one error, nothing to act on. I would look at logits
# (signal to noise) which move smoothly, and test on more images before I change anything.
#
# </details>

# %% [markdown] tags=["interview"]
# **The INT8 model is slower than FP32. Why?**
#
# <details><summary>A model answer</summary>
#
# Look at the fused graph. Perhaps an operator has no integer kernel, so tensors are dequantized and
# quantized around it: a missing Q after a sum is enough. Perhaps the net is so small that a call
# costs more than its arithmetic; the extra Q nodes then only add. Perhaps the processor has no
# VNNI, and 8-bit products go through more instructions than float FMAs. Or layout: integer
# convolutions want channels last, and transposes were inserted. Measure interleaved medians at the
# batch size of production, on the production machine.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Jacob et al. 2018](https://arxiv.org/abs/1712.05877): integer-only inference, folding while
#   training.
# - [Krishnamoorthi 2018](https://arxiv.org/abs/1806.08342): the whitepaper on quantizing
#   convolution nets; per-channel weights.
# - [Nagel et al. 2019](https://arxiv.org/abs/1906.04721): cross-layer equalization.
# - [Wu et al. 2020](https://arxiv.org/abs/2004.09602): ranges compared on many nets.
# - [He et al. 2016](https://arxiv.org/abs/1512.03385): residual nets.
# - [ONNX Runtime: quantization](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)
# - Next: [the map](../00_start_here.ipynb)
