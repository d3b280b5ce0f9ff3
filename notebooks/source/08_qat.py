# %% [markdown]
# # 08 · Quantization-aware training
#
# **What can training fix that rounding cannot?**
#
# **You will be able to**
# - train through a rounding, and say why the gradient you use is the right wrong one
# - derive how a scale is learned, and keep its steps in proportion
# - win back a 2-bit model in minutes, and export the integers that were trained
# - fold batch norms, train LoRA adapters on a 4-bit model, and merge them
# - choose between PTQ, QAT and QLoRA, and say what each costs
#
# **Time:** 110 minutes · **Before this:** [05_gptq](05_gptq.ipynb)

# %%
import logging
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn
from torch.ao import quantization as ao

from labkit import formats
from labkit.core.errors import CalibrationError
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course import widgets_08_pictures as pictures
from labkit.course.prediction import predict
from labkit.course.widgets_08_grid import GridExplorer

# %%
from labkit.course.widgets_08_training import (
    LossCurve,
    ScaleLog,
    fast_bfloat16,
    learned_scales,
    scale_paths,
)
from labkit.data import load_corpus
from labkit.data.numpy_docs import load_numpy_docs
from labkit.evaluate.perplexity import perplexity
from labkit.formats import gptq
from labkit.models import load
from labkit.models.apply import map_weights
from labkit.models.quantized import model_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import nf4, rtn
from labkit.study import qlora as qlora_study
from labkit.study import results

# %%
from labkit.training import qlora
from labkit.training.batch_norm import fold_batch_norm
from labkit.training.convert import convert, dequantized
from labkit.training.divergence import DivergenceError
from labkit.training.fake_quant import FakeQuant
from labkit.training.losses import LanguageLoss
from labkit.training.lsq import LearnedScale
from labkit.training.prepare import QatConfig, prepare
from labkit.training.qlora_batches import document_batches
from labkit.training.trainer import TrainSettings, train

# %% [markdown]
# ## Where rounding stops
#
# The bundled model, every linear layer at 4, 3 and 2 bits, one scale a row. Once the scale reaches
# to the largest weight; once it clips where the squared error is least.

# %%
guess_two = predict(
    "2 bits, one scale a row, the best clip for each row: perplexity on code is",
    ["under 1.2 times FP32's", "1.2 to 3 times", "over 3 times"],
)

# %%
model, tokenizer = load()
text = load_corpus("stdlib-code", "heldout").text


def ppl(network, of=text):
    """Perplexity of held-out text: at most 256 tokens before each of 2048."""
    return perplexity(network, tokenizer, of, context=256, max_tokens=2048).value


def rounded(bits, clip):
    """The model with every linear layer rounded to nearest, one scale a row."""
    scheme = QuantScheme(bits, narrow_range=False)
    return map_weights(model, lambda _, w: rtn.quantize(w, scheme, clip=clip).dequantize())


float_ppl = ppl(model)
nearest = {(b, clip): ppl(rounded(b, clip)) for b in (4, 3, 2) for clip in ("none", "mse")}

# %% tags=["nbval-ignore-output"]
print(f"FP32: {float_ppl:.2f}")
for bits in (4, 3, 2):
    print(f"{bits} bits: {nearest[bits, 'none']:8.2f}, best clip {nearest[bits, 'mse']:6.2f}")
ratio = nearest[2, "mse"] / float_ppl
guess_two.compare(
    f"{ratio:.2f} times", correct=guess_two.options[0 if ratio < 1.2 else 1 if ratio < 3 else 2]
)

# %%
added = {bits: nearest[bits, "mse"] / float_ppl - 1 for bits in (4, 3, 2)}
print("each bit less adds more than twice as much:", added[2] > 2 * added[3] > 4 * added[4] > 0)
print("at 2 bits the clip matters most:", nearest[2, "none"] > 2 * nearest[2, "mse"])
assert added[2] > 2 * added[3] > 4 * added[4]

# %% [markdown]
# GPTQ does better: it moves each layer's error to where the layer's inputs do not look. Its
# figures are recorded, for it takes longer than a notebook should. What is left at 3 and 2 bits?

# %%
study = results.load("qat")
runs = study["runs"]
print("made by:", study["command"])
for run in runs:
    left = {d.removeprefix("stdlib-"): run["gptq"][d] / run["fp32"][d] - 1 for d in run["fp32"]}
    print(f"{run['what']:32}", ", ".join(f"{d} {x:+.1%}" for d, x in left.items()))

# %% [markdown]
# Look at the grid. A row of a weight matrix, and the levels that it may use:

# %%
name = list(linear_layers(model))[len(linear_layers(model)) // 2]
W = weight_matrix(linear_layers(model)[name]).detach().float().cpu()
fig, axes = figures.new(1, 3, size=(9.2, 2.8), sharey=True)
quality = {}
for ax, bits in zip(axes, (4, 3, 2), strict=True):
    quantized = rtn.quantize(W, QuantScheme(bits, narrow_range=False), clip="mse")
    quality[bits] = sqnr_db(W, quantized.dequantize())
    step = float(quantized.scale.flatten()[0])
    ax.hist(W[0].numpy(), bins=41, color="#9fc5e8")
    for code in range(quantized.scheme.qmin, quantized.scheme.qmax + 1):
        ax.axvline(code * step, color=figures.PALETTE[1], linewidth=1.2)
    ax.set(xlabel="weight", title=f"{bits} bits, SQNR {quality[bits]:.0f} dB")
axes[0].set_ylabel("weights of the row")
figures.show(fig, alt="One row's weights as a histogram, under sixteen, eight and four levels: at "
             "2 bits most weights lie far from any of them.")  # fmt: skip

# %%
noise = 10 ** (-quality[2] / 10)
print("at 2 bits the error has more than a twentieth of the weights' power:", noise > 0.05)
print("at 4 bits less than a fiftieth:", 10 ** (-quality[4] / 10) < 0.02)
assert noise > 0.05

# %% [markdown]
# Every layer adds such an error, and the next one reads the sum. Rounding looks at weights, GPTQ
# at one layer's outputs. Neither knows the loss, and neither lets layer 7 make up for layer 2.
# Gradient descent does both. But can it pass a rounding?

# %% [markdown]
# ## A staircase has no slope
#
# `round` is flat almost everywhere. Its derivative is 0, so nothing in front of it learns.

# %%
x = torch.tensor([0.2, 0.7, 1.4], requires_grad=True)
(slope,) = torch.autograd.grad(torch.round(x).sum(), x)
print("true gradient of round:", slope.tolist())

# %% [markdown]
# Shake x by up to half a step before rounding, and average: codes 0 and 1 then appear in just the
# shares that make their mean x. The staircase, seen from afar, is the line x, up to where it is
# clipped. **The straight-through estimator takes that line's slope**: 1 inside the grid, 0 where a
# value is clipped.

# %%
x = torch.linspace(-4, 4, 161)
shake = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) - 0.5
average = (x + shake).round().clamp(-2, 1).mean(0)
line = x.clamp(-2, 1)
fig, (top, bottom) = figures.new(2, 1, size=(6.8, 4.6), sharex=True, height_ratios=(3, 2))
top.plot(x, x.round().clamp(-2, 1), drawstyle="steps-mid", label="2 bits: -2 to 1")
top.plot(x[::4], average[::4], "o", markersize=4, label="mean of 4000 shaken ones")
top.plot(x, line, color="black", linewidth=1, linestyle=":", label="line, clipped")
top.set(ylabel="x̂")
top.legend()
bottom.plot(x, torch.zeros_like(x), label="true derivative (but for the jumps)")
bottom.plot(x, ((x > -2.5) & (x < 1.5)).float(), label="straight-through")
bottom.set(xlabel="x, in steps", ylabel="derivative", ylim=(-0.1, 1.7))
bottom.legend(loc="upper left", ncols=2)
figures.show(fig, alt="A staircase of four levels; the mean of shaken roundings lies on the line "
             "through it; below, derivative 0 of the stairs and 1 of the line.")  # fmt: skip

# %%
away = float((average - line).abs().max())
print("the mean lies on the line:", away < 0.05)
assert away < 0.05

# %% [markdown]
# (The line ends at the last code, the estimator half a step later: a value there still gets that
# code by rounding alone. torch draws the border so, the LSQ paper at the code.)
#
# Play with bits and scale. The third curve comes later.

# %%
explorer = GridExplorer()
figures.show_widget(
    explorer,
    alt="Sliders for bits and scale; the staircase, its gradient by x, its gradient by the scale.",
)

# %%
explorer.scale.value, explorer.bits.value = 1.0, 4
wide = explorer.clipped
explorer.bits.value = 2
print(f"without a gradient: {wide:.0%} of the range at 4 bits, {explorer.clipped:.0%} at 2")
assert wide == 0 and 0.55 < explorer.clipped < 0.65

# %% [markdown]
# Does a wrong gradient arrive? One weight, codes 0 and 1, and a loss that would like 0.6.

# %%
guess_toy = predict(
    "Trained straight through, the weight ends",
    ["at 0, where it began", "at 1, the nearest code", "to and fro between both codes"],
)

# %%
path, seen = [torch.tensor(0.1)], []
for _ in range(200):
    w = path[-1].clone().requires_grad_(True)
    w_hat = w + (w.round() - w).detach()  # forward: round(w); backward: w
    ((w_hat - 0.6) ** 2).backward()
    path.append((w - 0.02 * w.grad).detach())
    seen.append(float(w_hat.detach()))
late = seen[100:]
share = float(np.mean(late))

# %%
fig, ax = figures.new(size=(6.8, 3.0))
ax.plot(seen, drawstyle="steps-mid", linewidth=1, color="#999999", label="rounded weight")
ax.plot(path, label="weight")
ax.axhline(0.6, color=figures.PALETTE[1], linestyle=":", label="what the loss would like")
ax.set(xlabel="step", ylabel="value", xlim=(0, 120))
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
figures.show(fig, alt="A weight climbs to 0.5 and stays there, while its rounded value jumps to "
             "and fro between 0 and 1.")  # fmt: skip
guess_toy.compare(
    f"code 1 in {share:.0%} of the later steps",
    correct=guess_toy.options[0 if share == 0 else 1 if share == 1 else 2],
)

# %%
print("the rounded weight's mean is what the loss would like:", abs(share - 0.6) < 0.05)
print("the weight stays at the border:", abs(float(path[-1]) - 0.5) < 0.05)
assert abs(share - 0.6) < 0.05

# %% [markdown]
# The mean is right, a single step never is: weights *oscillate* around the borders between codes.
# Hence the learning rate falls to 0 at the end, and they come to rest. The other weights of the
# row know where this one rests, and make up for it.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.1 · Straight through
#
# *10 minutes, difficulty 2 of 5.* `x` and `grad` are float tensors of one shape, `scale` a tensor
# without axes, `zero_point` a whole number. Return x rounded to the grid (real numbers, not codes)
# and the gradient by x: `grad` where the code, before the clamp, lies in `qmin` to `qmax`, else 0.
# `hint("08.1")`, `reveal("08.1")`.


# %% tags=["exercise-08.1"]
def straight_through(x, scale, zero_point, qmin, qmax, grad):
    """(x rounded to the grid, gradient by x), from `grad`, the gradient by the rounded x."""
    ...


check("08.1", straight_through)

# %% [markdown]
# PyTorch calls this `FakeQuantize`: rounded forward, straight through backward. Ours beside it, on
# the weight from above:

# %%
theirs = ao.FakeQuantize(
    observer=ao.PerChannelMinMaxObserver, quant_min=-3, quant_max=3, dtype=torch.qint8,
    qscheme=torch.per_channel_symmetric, ch_axis=0,
)  # fmt: skip
ours = FakeQuant(QuantScheme(3))
theirs(W), ours(W)  # both watch W, then keep the range: a larger W will be clipped
theirs.disable_observer(), ours.freeze()
pull = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
one, two = (W.mul(1.5).requires_grad_(True) for _ in range(2))
a, b = theirs(one), ours(two)
(a * pull).sum().backward()
(b * pull).sum().backward()
v = two.detach() / ours.qparams()[0]
ties = (v - v.floor() - 0.5).abs() < 1e-5  # torch multiplies by 1 / scale, which is no division
forward = bool((ties | ((a - b).abs() < 1e-6)).all())
backward = bool((ties | (one.grad == two.grad)).all())
print("forward and gradient the same, but for ties:", forward, backward)
print("less than one in fifty is at a tie:", bool(ties.float().mean() < 0.02))
print("some were clipped:", bool((two.grad == 0).any()))
assert forward and backward and ties.float().mean() < 0.02

# %% [markdown]
# ## Where the rounding goes
#
# A float weight is kept, trained, and rounded *again in every forward pass*. What is rounded is
# what the integer layer will read: both inputs of the product, and nothing behind it.

# %%
figures.show(
    pictures.layer_diagram(),
    alt="Inputs and float weight each pass a fake quantization, then the product, then a bias that "
    "is not rounded; the gradient runs back as if nothing had been rounded.",
)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.2 · Where the rounding goes
#
# *8 minutes, difficulty 2 of 5.* A layer that will run with 8-bit inputs and 4-bit weights. `x` is
# [n, in], `weight` [out, in], `bias` [out]; `x_scale` has no axes, `w_scale` is [out, 1]. `fake`
# rounds. Return the output as training must compute it. `hint("08.2")`, `reveal("08.2")`.


# %% tags=["exercise-08.2"]
def qat_linear(x, weight, bias, x_scale, w_scale):
    """[n, out]: the layer as it will compute with 8-bit inputs and 4-bit weights."""

    def fake(t, scale, bits):
        """t on a symmetric grid of `bits` bits."""
        codes = torch.round(t / scale)
        return scale * codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    ...


check("08.2", qat_linear)

# %% [markdown]
# For a whole model `prepare` does it: a copy with the same names and parameters, whose linear
# layers round. We take 2 bits; scales begin at the best clip.

# %%
W2 = QuantScheme(2, narrow_range=False)
student = prepare(model, QatConfig(W2, start="mse"))
start_ppl = ppl(dequantized(student))
before = learned_scales(student)
print("it starts where rounding with the best clip ended:",
      abs(start_ppl / nearest[2, "mse"] - 1) < 0.02)  # fmt: skip
print("layers that round:", len(before) == len(linear_layers(model)))
assert abs(start_ppl / nearest[2, "mse"] - 1) < 0.02

# %% [markdown]
# ## A scale is a weight too
#
# The distance s between two codes decides what is clipped, so why not learn it (LSQ)? With
# v = w / s, x̂ = s · round(v), the product rule, and round's slope taken as 1:
#
# $$ \frac{\partial \hat x}{\partial s} = \operatorname{round}(v) + s\left(-\frac{w}{s^2}\right)
#  = \operatorname{round}(v) - v $$

# %% [markdown]
# A clipped weight sits on the last code: x̂ = s · qmax, derivative qmax. That is the third curve
# above: a saw of ±½ inside, the ends of the grid outside. So clipped weights pull at the scale
# with more force than all others, and the saw says whether the grid *fits*.

# %%
explorer.bits.value = 3
curves = explorer.curves()
saw = curves["by scale"][(curves["x"] > -4.4) & (curves["x"] < 3.4)]
print("inside at most half a step:", float(saw.abs().max()) <= 0.5)
print("clipped:", curves["by scale"][0].item(), "and", curves["by scale"][-1].item())

# %% [markdown]
# All weights of a row share one scale, so its gradient is a sum of n numbers. Steps should be in
# proportion: gradient over size, the same for scale and weights. Esser et al. divide the scale's
# gradient by sqrt(n · qmax).

# %%
guess_scale = predict(
    "Without that, relative to its size a scale's gradient outdoes a weight's by about",
    ["no more than 2 times", "2 to 10 times", "over 10 times"],
)

# %%
batch = document_batches(
    tokenizer, load_corpus("stdlib-code", "train").documents[:120], rows=8, length=128
)
student.train()
LanguageLoss(model)(student, batch(0)[:2]).backward()
R = {}
for layer_name in before:
    layer = student.get_submodule(layer_name)
    scales, factor = layer.weight_quant.scale, layer.weight_quant.factor
    by_weight = float(layer.weight.grad.norm() / layer.weight.detach().norm())
    with_g = float(scales.grad.norm() / scales.detach().norm()) / by_weight
    R[layer_name] = (with_g / factor, with_g)
student.zero_grad()
plain, scaled = (float(np.median([pair[k] for pair in R.values()])) for k in (0, 1))

# %%
fig, ax = figures.new(size=(7.2, 3.2))
for k, label in enumerate(("gradient as it is", "divided by sqrt(n · qmax)")):
    ax.plot([pair[k] for pair in R.values()], "os"[k], label=label)
ax.axhline(1, color="black", linewidth=1, linestyle=":")
ax.set(xlabel="layer", ylabel="scale's gradient / weight's,\neach over its size", yscale="log")
ax.set_yticks((0.2, 0.5, 1, 2, 5, 10), labels=("0.2", "0.5", "1", "2", "5", "10"))
ax.minorticks_off()
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
figures.show(fig, alt="For every layer two dots: the relative gradient of the scales is far above "
             "that of the weights as it is, and nearer to it after division.")  # fmt: skip

# %% tags=["nbval-ignore-output"]
guess_scale.compare(
    f"{plain:.1f} times in the median layer; divided, {scaled:.2f}",
    correct=guess_scale.options[0 if plain <= 2 else 1 if plain <= 10 else 2],
)

# %%
nearer = np.mean([abs(math.log(b)) < abs(math.log(a)) for a, b in R.values()])
print("divided, they are nearer to 1 in most layers:", nearer > 0.5)
assert plain > 2 * scaled

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.3 · The gradient of a scale
#
# *12 minutes, difficulty 3 of 5.* `w` and `grad` are [out, in], `scale` is [out, 1], codes run
# from `qmin` to `qmax`. Return the gradient of each row's scale, [out, 1]: `grad` times
# round(v) - v inside, `grad` times the last code where clipped, summed, divided by sqrt(n · qmax)
# with n weights to a scale. Inside means by code, as in 08.1. `hint("08.3")`, `reveal("08.3")`.


# %% tags=["exercise-08.3"]
def lsq_gradient(w, scale, qmin, qmax, grad):
    """[out, 1]: gradient by each row's scale, times 1 / sqrt(n qmax); w, grad [out, in]."""
    ...


check("08.3", lsq_gradient)

# %% [markdown]
# The paper trains with SGD. **Adam** divides each gradient by its own size and so undoes the
# factor; there the scale needs a learning rate of its own. `labkit` makes it relative: at most
# `scale_lr` of the scale's start in a step.

# %% [markdown]
# ## What to learn from
#
# The next token of a text is one word. The float model gives a probability for each of 4096 words,
# and it is what we want to be again. So the student learns its *teacher's* distribution:
# KL(teacher ‖ student). More to learn from each token, and no labels.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.4 · Learn from the float model
#
# *8 minutes, difficulty 2 of 5.* `student` and `teacher` are logits [tokens, vocabulary]. Divide
# both by the temperature T, and return T² times the mean over tokens of KL(teacher ‖ student), in
# nats. `hint("08.4")`, `reveal("08.4")`.


# %% tags=["exercise-08.4"]
def distill(student, teacher, temperature):
    """T² times the mean over tokens of KL(teacher || student); logits [tokens, vocabulary]."""
    ...


check("08.4", distill)

# %% [markdown]
# ## Train
#
# 32 batches of 1024 tokens of Python code, none of it held out. Every weight and every scale may
# move. What part of the perplexity that 2 bits cost comes back?

# %%
guess_train = predict(
    "After 32 steps, of the gap to FP32 there is closed",
    ["under a third", "a third to two thirds", "over two thirds"],
)

# %% tags=["nbval-ignore-output"]
steps = 32
curve, log = LossCurve(steps), ScaleLog(student, name)
figures.show_widget(curve, alt="The loss of the training run below, drawn while it runs.")


def watch(words, done, total):
    """Draw the loss, note the scales."""
    curve.progress(words, done, total)
    log.note()


settings = TrainSettings(
    steps=steps, lr=1e-3, scale_lr=5e-3, warmup=5, bfloat16=fast_bfloat16(), evaluate_every=steps
)
history = train(student, batch, settings, teacher=model, progress=watch)

# %%
first, last = (float(np.mean(part)) for part in (curve.losses[:5], curve.losses[-5:]))
print("tokens:", 1024 * len(curve.losses))
print("the loss fell by more than a quarter:", last < 0.75 * first)
assert last < 0.75 * first
figures.show(curve.figure(), alt="The loss falls fast at first, then slowly, over the run.")

# %% tags=["nbval-ignore-output"]
trained_ppl = ppl(dequantized(student))
closed = (start_ppl - trained_ppl) / (start_ppl - float_ppl)
guess_train.compare(
    f"{closed:.0%}: perplexity {start_ppl:.2f}, trained {trained_ppl:.2f}, FP32 {float_ppl:.2f}",
    correct=guess_train.options[0 if closed < 1 / 3 else 1 if closed < 2 / 3 else 2],
)
figures.show(
    pictures.bars_of_perplexity(
        {"2 bits": nearest[2, "none"], "best clip": start_ppl, "trained": trained_ppl,
         "3 bits,\nbest clip": nearest[3, "mse"], "FP32": float_ppl}, float_ppl,
    ),
    alt="Perplexity on a log scale: 2 bits far up, with the best clip much lower, trained lower "
    "again, then 3 bits and FP32.",
)  # fmt: skip

# %%
print("held-out perplexity fell:", trained_ppl < start_ppl)
print("more than a third of the gap is closed:", closed > 1 / 3)
assert closed > 1 / 3

# %% [markdown]
# The bundled model once read fifteen million tokens; this was a fifth of a per cent of that. And
# what did the scales do?

# %%
after = learned_scales(student)
shown = range(0, len(log.rows[0]), max(1, len(log.rows[0]) // 16))
figures.show(
    scale_paths(log, before, after, shown),
    alt="Left, sixteen scales of one layer drift away from their start, most of them in the first "
    "half; right, a histogram of all scales after training over before, around 1.",
)
moved = torch.cat([(after[n] / before[n] - 1).abs() for n in before])
print("some scale moved by more than 3 %:", bool(moved.max() > 0.03))
assert moved.max() > 0.03

# %%
original = rtn.quantize(W, W2, clip="mse").codes
now = student.get_submodule(name).weight_quant.quantized(student.get_submodule(name).weight).codes
changed = float((original != now).float().mean())
print("codes that are no longer the nearest: 1 to 40 %:", 0.01 < changed < 0.4)
assert 0.01 < changed < 0.4

# %% [markdown]
# That is the difference to rounding: most codes stay, a part of them are *not* the nearest ones any
# more, and which ones was decided by the loss.

# %% [markdown]
# ## Quality against steps
#
# Given more time, and GPTQ's codes to start from. This was recorded by `labkit study qat`; a run
# may use 5 % of the tokens that the model was once trained on.

# %%
guess_three = predict(
    "With up to 5 % of the training, of GPTQ's gap at 3 bits (code) training closes",
    ["under half", "half to nine tenths", "over nine tenths"],
)

# %%
figures.show(
    pictures.recovery(runs),
    alt="Perplexity against steps as a part of GPTQ's, a panel for each run: both texts start at "
    "1 and end lower, nearer to the dotted lines of FP32.",
)
three = runs[0]["closed"]["stdlib-code"]
guess_three.compare(
    f"{three:.0%}", correct=guess_three.options[0 if three < 0.5 else 1 if three < 0.9 else 2]
)

# %%
print(pictures.recovery_table(runs))
print("part of the training:", ", ".join(f"{run['share_of_training']:.1%}" for run in runs))
print(
    "training is better than GPTQ in every row:",
    all(run["qat"][d] < run["gptq"][d] for run in runs for d in pictures.DOMAINS),
)

# %% [markdown]
# Perplexity is a mean over all tokens. Do the tasks come back as well? Right answers in four tasks
# that the model can do:

# %%
print(pictures.task_table(runs))
print("items a task:", study["task_items"])

# %% [markdown]
# ## A batch norm disappears
#
# In a convolution net each convolution has a batch norm behind it. In evaluation that is one factor
# and one offset a channel: it goes into weight and bias. What the chip rounds is the *folded*
# weight, so training must round that one.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.5 · Fold a batch norm
#
# *10 minutes, difficulty 2 of 5.* The norm gives (u - mean) / sqrt(var + eps) · gamma + beta, all
# [out], where u is the output of a convolution with `weight` [out, in, kh, kw] and `bias` [out] or
# None. Return `(weight, bias)` of the one convolution that both become. `hint("08.5")`,
# `reveal("08.5")`.


# %% tags=["exercise-08.5"]
def fold(weight, bias, gamma, beta, mean, var, eps):
    """(weight, bias) of one convolution; weight [out, in, kh, kw], bias [out] or None."""
    ...


check("08.5", fold)

# %%
with torch.random.fork_rng():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
    images = torch.randn(64, 3, 12, 12) * torch.tensor([0.2, 1.0, 3.0]).reshape(1, 3, 1, 1)
with torch.no_grad():
    conv.weight.mul_(torch.logspace(-1, 0.5, 12).reshape(-1, 1, 1, 1))
    for _ in range(40):
        norm(conv(images))  # in training mode: the norm gathers its statistics
    norm.eval()
    folded = fold_batch_norm(conv, norm)
    difference = (folded(images) - norm(conv(images))).abs().max()
print("one convolution gives what the two gave:", bool(difference < 1e-4))
assert difference < 1e-4

# %%
fig, ax = figures.new(size=(6.8, 3.0))
for values, label, shift in ((conv.weight, "as trained", -0.2), (folded.weight, "folded", 0.2)):
    ax.bar(np.arange(12) + shift, values.detach().abs().amax(dim=(1, 2, 3)), 0.4, label=label)
ax.set(xlabel="output channel", ylabel="largest |weight|", yscale="log")
ax.set_yticks((0.02, 0.05, 0.1, 0.2, 0.5), labels=("0.02", "0.05", "0.1", "0.2", "0.5"))
ax.minorticks_off()
ax.legend()
figures.show(fig, alt="Largest weight of twelve channels before and after folding: it grows from "
             "left to right before, and is much the same for all after.")  # fmt: skip

# %% [markdown]
# The ranges have changed. With one scale for the whole tensor that changes every code; with one a
# channel the factor moves into the scale, and the codes stay. Check both:


# %%
@torch.no_grad()
def codes(weight, granularity):
    """Codes of a convolution's weight in 4 bits."""
    quant = FakeQuant(QuantScheme(4, True, granularity))
    quant(weight)
    return quant.quantized(weight).codes


for granularity in ("channel", "tensor"):
    same = (codes(conv.weight, granularity) == codes(folded.weight, granularity)).float().mean()
    print(f"by {granularity:8} the same codes: {float(same) > 0.999}")

# %% [markdown]
# ## Real integers
#
# So far the weights were floats on a grid. Now they become codes of 2 bits. Training rounded with
# the scale *as it is stored*, in float16, so nothing is searched or rounded again.

# %%
result = convert(student)
ids = torch.tensor([tokenizer(text[:1500], add_special_tokens=False)["input_ids"][:128]])
student.eval()
with torch.no_grad():
    trained, integers = (m(input_ids=ids).logits for m in (student, result.model))
layer = result.layers[name]
print(layer.scheme, layer.codes.dtype, "codes", sorted(set(layer.codes.flatten().tolist())))
print("integer model, the same logits to the bit:", torch.equal(trained, integers))
assert torch.equal(trained, integers)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.6 · Export what was trained
#
# *10 minutes, difficulty 2 of 5.* `weight` [out, in] and the learned `scale` [out, 1] are float32.
# The file stores the scale in float16, and training rounded with that one, halves to even, to codes
# from -2^(b-1) to 2^(b-1) - 1. Return `(codes int8, scale float16)` whose product is what training
# computed with, to the bit. `hint("08.6")`, `reveal("08.6")`.


# %% tags=["exercise-08.6"]
def export_integers(weight, scale, bits):
    """(codes int8 [out, in], scale float16 [out, 1]); weight and learned scale are float32."""
    ...


check("08.6", export_integers)

# %%
with tempfile.TemporaryDirectory() as folder:
    gptq.save(result.checkpoint(tokenizer), Path(folder) / "trained")
    read = model_from(formats.load(Path(folder) / "trained"))
    with torch.no_grad():
        again = read(input_ids=ids).logits
stored = sum(part.nbytes for part in result.layers.values())
full = sum(part.weight.numel() * 4 for part in linear_layers(model).values())
print("a GPTQ file, read again, the same logits to the bit:", torch.equal(again, trained))
print("linear layers at least 15 times smaller than in float32:", full > 15 * stored)
assert torch.equal(again, trained) and full > 15 * stored

# %% [markdown]
# With 8-bit inputs the *sums* run over integers, exactly; training rounded them in float32. So the
# two differ, by at most what n additions in float32 may lose, 2 (n + 4) · 2⁻²⁴ · Σ |x̂ ŵ|:

# %%
W4, A8 = QuantScheme(4, narrow_range=False), QuantScheme(8, True, "token", narrow_range=False)
eight = prepare(model, QatConfig(W4, A8), tell=lambda line: None).eval()
layer = eight.get_submodule(name)
integer_layer = convert(nn.Sequential(layer)).model[0]
x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    x_hat, w_hat = layer.input_quant(x), layer.weight_quant(layer.weight)
    bound = 2 * (x.shape[1] + 4) * 2**-24 * (x_hat.abs() @ w_hat.abs().T)
    difference = (integer_layer(x) - layer(x)).abs()
print(type(integer_layer).__name__, "within the bound:", bool((difference <= bound).all()))
assert (difference <= bound).all()

# %% [markdown]
# ## QLoRA: train beside a 4-bit model
#
# QAT keeps float weights, gradients and two moments of Adam: 16 bytes a weight. QLoRA freezes the
# model in NF4, half a byte a weight, and trains a thin pair of matrices beside each layer:
#
# $$ y = \hat W x + \tfrac{\alpha}{r}\, B A x $$
#
# B starts at 0, so at first nothing changes.

# %% [markdown]
# It is for teaching a model something *new*. The bundled model read Python's standard library; it
# never saw NumPy's docstrings. Some are for training, others are held out.

# %%
guess_lora = predict(
    "After 16 steps beside the NF4 model, perplexity on held-out NumPy pages falls by",
    ["under 5 %", "5 to 20 %", "over 20 %"],
)

# %%
# peft imports bitsandbytes, which warns on some processors that it will use no fast kernel.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
pages = load_numpy_docs("heldout").text
adapted = qlora.add_adapters(qlora.freeze_base(model), rank=8, alpha=16)
learns = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
share = learns / sum(p.numel() for p in model.parameters())
table = {"FP32": ppl(model, pages), "NF4": ppl(adapted, pages)}
print("numbers that learn: between 1 and 10 %:", 0.01 < share < 0.1)

# %% tags=["nbval-ignore-output"]
lora_curve = LossCurve(16)
figures.show_widget(lora_curve, alt="The loss of the adapters, drawn while they learn.")
lora_batch = document_batches(
    tokenizer, load_numpy_docs("train").documents[:150], rows=8, length=128
)
train(
    adapted, lora_batch,
    TrainSettings(steps=16, warmup=3, lr=5e-3, bfloat16=fast_bfloat16(), evaluate_every=16),
    progress=lora_curve.progress,
)  # fmt: skip
assert lora_curve.losses[-1] < lora_curve.losses[0]

# %% tags=["nbval-ignore-output"]
table["NF4 + adapter"] = ppl(adapted, pages)
merged = qlora.merge(adapted)
table["merged, float"] = ppl(merged, pages)
again = map_weights(merged, lambda _, w: nf4.quantize(w).dequantize())
table["merged, NF4 again"] = ppl(again, pages)
for what, value in table.items():
    print(f"{what:20}{value:8.2f}")
fell = 1 - table["NF4 + adapter"] / table["NF4"]
guess_lora.compare(
    f"{fell:.0%}", correct=guess_lora.options[0 if fell < 0.05 else 1 if fell < 0.2 else 2]
)

# %%
print("the adapter learned:", table["NF4 + adapter"] < 0.9 * table["NF4"])
near = abs(table["merged, float"] / table["NF4 + adapter"] - 1) < 1e-3
print("merged in floats it is the same model:", near)
again_lost = table["merged, NF4 again"] - table["merged, float"]
print("rounding again takes back more than rounding the first time cost:",
      again_lost > table["NF4"] - table["FP32"])  # fmt: skip
assert near and table["NF4 + adapter"] < 0.9 * table["NF4"]

# %% [markdown]
# Why so much? The base already lies on NF4's levels. What the adapter adds is mostly less than half
# a step: rounded again, such a weight falls back to the level that it came from.

# %%
kept = []
for layer_name, layer in qlora.adapted_layers(adapted).items():
    old = layer.base_layer.quantized.codes
    kept.append(float((nf4.quantize(merged.get_submodule(layer_name).weight).codes == old)
                      .float().mean()))  # fmt: skip
print("more than nine codes of ten are the old ones:", np.mean(kept) > 0.9)
assert np.mean(kept) > 0.9

# %% [markdown]
# Two ways to serve it: keep 4 bits *and* adapter, one base for many adapters; or merge and round
# again, one matrix, and one more rounding error. The recorded table, with more steps:

# %%
recorded = results.load("qlora")
print("made by:", recorded["command"])
block = qlora_study.readme_block(recorded)
display({"text/markdown": block, "text/plain": block}, raw=True)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 08.7 · Merge a LoRA adapter
#
# *6 minutes, difficulty 1 of 5.* `original` is the float weight [out, in], `base` what NF4 made of
# it, beside which the adapter was trained; `A` is [rank, in], `B` [out, rank]. Return the one
# weight that gives the same outputs as base and adapter. `hint("08.7")`, `reveal("08.7")`.


# %% tags=["exercise-08.7"]
def merge(original, base, A, B, alpha):
    """[out, in]; A [rank, in], B [out, rank]; base is what NF4 made of the original."""
    ...


check("08.7", merge)

# %% [markdown]
# ## Before and after
#
# The whole model at 2 bits: how far hidden states drift from the float model's, block by block,
# rounded and trained.


# %%
@torch.no_grad()
def drift(network):
    """Relative error of the hidden states behind each block, on unseen code."""
    got, right = (n(input_ids=ids.to(n.device), output_hidden_states=True).hidden_states
                  for n in (network, model))  # fmt: skip
    return [float((g - r).norm() / r.norm()) for g, r in zip(got[1:], right[1:], strict=True)]


drifts = {
    "2 bits": drift(rounded(2, "none")),
    "2 bits, best clip": drift(rounded(2, "mse")),
    "2 bits, trained": drift(dequantized(student)),
    "3 bits, best clip": drift(rounded(3, "mse")),
}

# %%
fig, ax = figures.new(size=(7.2, 3.6))
for (label, values), marker in zip(drifts.items(), "xosD", strict=True):
    ax.plot(range(1, len(values) + 1), values, marker=marker, label=label)
ax.set(xlabel="behind block", ylabel="relative error of the hidden states", ylim=(0, None))
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
figures.show(
    fig,
    alt="Relative error of the hidden states behind each block, four lines: plain rounding to 2 "
    "bits is far above the best clip, the trained model and 3 bits.",
)
ends = [drifts[k][-1] for k in ("2 bits", "2 bits, best clip", "2 bits, trained")]
print("behind the last block training is nearer to the float model:", ends[2] < ends[1] < ends[0])
assert ends[2] < ends[0] and ends[1] < ends[0]

# %% [markdown]
# ## What breaks this
#
# **A scale that starts too large.** At twenty times its right size every weight rounds to 0. The
# layer is silent; its scale feels only the saw, and crawls back.

# %%
learned = LearnedScale.of_weight(W, W2)
zeros = {}
for factor in (1, 20):
    with torch.no_grad():
        learned.initialize(W)
        learned.scale.mul_(factor)
        zeros[factor] = float((learned(W) == 0).float().mean())
    print(f"scale times {factor:2}: weights that are 0: {zeros[factor]:.0%}")
steps_back = math.log(20) / 5e-3
print(f"steps back at 0.5 % each: about {steps_back:.0f}")
assert zeros[20] > 0.99 > zeros[1]

# %% [markdown]
# **A gradient that passes clipped values.** The loss wants more than the grid can say. Blocked, the
# weight stays beside the grid. Let through, it runs away, and when the loss changes its mind it is
# too far out to answer.

# %%
ends = {}
for passes in (False, True):
    w = torch.tensor(0.88)
    for step in range(400):
        goal = 3.0 if step < 300 else 0.0  # the last code is 1
        inside = bool(-2.5 < w < 1.5)
        w_hat = w.round().clamp(-2, 1)
        w = w - 0.01 * 2 * (w_hat - goal) * (inside or passes)
        if step == 299:
            far = float(w)
    ends[passes] = (far, float(w_hat))
for passes, (far, code) in ends.items():
    how = "passes" if passes else "blocked"
    print(f"{how:8} weight after 300 steps {far:5.2f}, code 100 steps after the change {code:.0f}")
assert ends[True][0] > 10 and ends[True][1] == 1

# %% [markdown]
# Neither answered: blocked for good, the weight stays at code 1 as well, with a gradient of 0. A
# *learned scale* is what saves it: clipped weights pull at the scale, and the grid grows to them.

# %% [markdown]
# **Too high a learning rate.** The trainer watches, stops, and says why, before the night is over.

# %%
torch.manual_seed(0)
small = prepare(
    nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), QatConfig(W2),
    tell=lambda line: None,
)  # fmt: skip
inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
goal = inputs[:, :4].clone()
try:
    train(
        small, lambda step: (inputs, goal), TrainSettings(steps=200, lr=10.0, warmup=100),
        loss=lambda network, batch: F.mse_loss(network(batch[0]), batch[1]),
    )  # fmt: skip
except DivergenceError as error:
    caught = error
print("it says what happened:", "the loss rose from" in str(caught))
print("well before step 200:", caught.step < 180)
print("and keeps the curve until then:", len(caught.history) == caught.step - 1)
print(caught.remedy)

# %% [markdown]
# **Ranges that are never frozen.** A static activation range is a moving average. One freak batch
# late in training stretches it, and that is what gets exported; frozen in time, it stays.

# %%
steps_of = {}
for frozen in (True, False):
    quant = FakeQuant(QuantScheme(8, False, "tensor"), "moving")
    for step in range(50):
        noise = torch.randn(256, generator=torch.Generator().manual_seed(step))
        if step == 40 and frozen:
            quant.freeze()
        quant(100 * noise if step == 48 else noise)
    steps_of[frozen] = float(quant.qparams()[0])
print("the step after the freak batch is larger, by more than 5 times:",
      steps_of[False] > 5 * steps_of[True])  # fmt: skip
assert steps_of[False] > 5 * steps_of[True]

# %% [markdown]
# **An observer that saw nothing.** Prepared for static inputs, and exported without a single batch:

# %%
static = QatConfig(W4, QuantScheme(8, True, "tensor", narrow_range=False), scales="minmax")
unseen = prepare(nn.Sequential(nn.Linear(8, 4)), static, tell=lambda line: None)
try:
    convert(unseen)
except CalibrationError as error:
    print(error)

# %% [markdown]
# ## When to choose it
#
# | | needs | memory a weight | when |
# |---|---|---|---|
# | PTQ | some text | one layer at a time | 4 bits and up; always first |
# | QAT | training data, teacher | 16 bytes and more | 2 to 3 bits; small models; int8 chips |
# | QLoRA | task data | 0.5 bytes + adapter | a new task on a model that fits only in 4 bits |

# %%
weights = 7e9
for what, bytes_each in (("GPTQ, 4 bits", 0.52), ("QLoRA, NF4 + 1 %", 0.52 + 0.01 * 16),
                         ("QAT, with its teacher in bfloat16", 16 + 2)):  # fmt: skip
    print(f"{what:36}{weights * bytes_each / 2**30:6.1f} GiB for 7 billion weights")

# %% [markdown]
# Activations come on top. So large models are trained on many GPUs, or with QLoRA, or block by
# block. Where QAT pays: below 4 bits, for small models on phones and microcontrollers, and where
# one model is served so often that a training is cheap.

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **PTQ or QAT: how do you decide?**
#
# <details><summary>A model answer</summary>
#
# PTQ first, always: it needs minutes and a little text. At 8 bits, and at 4 bits by group with GPTQ
# or AWQ, it usually loses less than I can measure on a task. I look at the task, not at perplexity
# alone.
#
# QAT where that fails: 2 or 3 bits, activations in 4 bits, one scale a tensor because the chip
# wants it, small models with no redundancy to spare. It needs data like the training data or
# a teacher to imitate, the training pipeline, 16 bytes a weight, and some per cent of the original
# compute.
#
# In between: better calibration, mixed precision, a smaller group. These are cheaper, so I try
# them before I train.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why does the straight-through estimator work, though its gradient is wrong?**
#
# <details><summary>A model answer</summary>
#
# The staircase's own derivative is 0 almost everywhere and useless. The estimator uses the slope of
# the line that the staircase follows: that is the derivative of the rounding averaged over a
# random shift of half a step. Many weights with different remainders act like such an average.
#
# Where a value is clipped the average is flat, so there the gradient is 0. Passing it lets weights
# drift beyond the grid, where they answer to nothing.
#
# It has a price: at a border between two codes the weight oscillates, because no code is the
# optimum. So let the learning rate fall to zero, or freeze weights that oscillate. The more bits,
# the smaller the bias.
#
# </details>

# %% [markdown] tags=["interview"]
# **Derive LSQ's gradient for the scale. Why is it divided by sqrt(n · qmax)?**
#
# <details><summary>A model answer</summary>
#
# x̂ = s · clamp(round(w / s)). Product rule, with round's slope taken as 1: inside the grid
# round(v) - v with v = w / s, what rounding moved the weight by, in steps. Clipped: the last code,
# since x̂ is s times it.
#
# One scale collects that from n weights, so its gradient relative to its size is about
# sqrt(n · qmax) times a weight's: a sum of n terms of random sign grows with sqrt(n), and a
# weight is about sqrt(qmax) scales large. Dividing puts both in proportion, and one learning rate
# serves.
#
# With Adam the factor cancels, since Adam divides by the gradient's size. There I give scales a
# learning rate relative to their value.
#
# </details>

# %% [markdown] tags=["interview"]
# **The QAT model was fine; the exported INT8 model is worse. What do you check?**
#
# <details><summary>A model answer</summary>
#
# First compare logits of the fake-quantized and the integer model on one batch. They should agree
# to float noise. If not, layer by layer, where do they part?
#
# Usual suspects: scales rounded to float16 only at export, so that codes change; another integer
# range, -127 or -128; rounding of halves; batch norm folded at export while training rounded the
# unfolded weight; running statistics or activation ranges that still moved; the bias rounded; an
# operation that training did not round, such as an addition or a concatenation; a rounding placed
# behind the ReLU here and in front of it there.
#
# If they do agree, the test differs: evaluation mode, preprocessing.
#
# </details>

# %% [markdown] tags=["interview"]
# **How does QLoRA fit a fine-tuning into a quarter of the memory, and what happens on merging?**
#
# <details><summary>A model answer</summary>
#
# The base is frozen in NF4, about half a byte a weight: no gradients, no optimizer state for it.
# Weights are dequantized layer by layer, forward and backward. Only LoRA's A and B learn, about a
# per cent of the weights, with 16 bytes for each. Double quantization saves another 0.37 bits a
# weight, paged optimizers absorb peaks.
#
# It is not QAT: the base's codes never change, though the adapter learns to make up for their
# errors. So merge into the dequantized base, not into the original weights. The merged matrix is
# float again. Rounding it to 4 bits brings a new error, which the adapter never saw: evaluate, and
# otherwise keep base and adapter apart, which also serves many tasks from one base.
#
# </details>

# %% [markdown] tags=["interview"]
# **Your QAT run diverges, or is no better than PTQ. What do you change?**
#
# <details><summary>A model answer</summary>
#
# Diverges: lower the learning rate, a hundredth of pre-training's is usual; warm up; clip
# gradients; give scales a relative rate; look for layers whose scales collapsed or exploded. Start
# from the PTQ solution, not from min-max.
#
# No better: are weights really moving? At 8 bits a step of the learning rate may be far below half
# a step of the grid, and there is nothing to win anyway. At 2 bits more steps help most. Take the
# teacher's distribution as target; use data of the original mixture, or the model forgets; keep
# first and last layer in more bits; freeze ranges and batch statistics towards the end.
#
# And check the evaluation: with weights rounded as exported.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Bengio et al. 2013](https://arxiv.org/abs/1308.3432): the straight-through estimator
# - [Jacob et al. 2018](https://arxiv.org/abs/1712.05877): training for integer-only inference, and
#   batch norm folded while training
# - [Esser et al. 2020](https://arxiv.org/abs/1902.08153): learned step size quantization;
#   [LSQ+](https://arxiv.org/abs/2004.09576) learns the zero-point, too
# - [PACT](https://arxiv.org/abs/1805.06085): a learned clip for activations
# - [Nagel et al. 2022](https://arxiv.org/abs/2203.11086): weights that oscillate
# - [LLM-QAT](https://arxiv.org/abs/2305.17888): large models, taught by themselves
# - [QLoRA](https://arxiv.org/abs/2305.14314) and [LoRA](https://arxiv.org/abs/2106.09685)
