# %% [markdown]
# # 02 · Scale and zero-point
#
# **How does a real number become an integer, and back?**
#
# **You will be able to**
# - choose a scale and a zero-point for any range of real numbers
# - tell rounding error from clipping error, and trade one for the other
# - pick an observer for an activation, and say when each of them fails
# - decide between symmetric and asymmetric, static and dynamic
# - multiply matrices on integers alone, and put the zero-points right afterwards
#
# **Time:** 60 minutes · **Before this:** [01_dtypes](01_dtypes.ipynb)

# %%
import contextlib
import math

import numpy as np
import torch

from labkit.core.affine import choose_qparams, dequantize, fake_quantize, quantize
from labkit.core.metrics import sqnr_db
from labkit.core.observers import OBSERVERS
from labkit.course import check, figures, hint, reveal
from labkit.course.prediction import predict
from labkit.course.widgets_02_clip import RATIOS, ClipExplorer, draw_curve
from labkit.course.widgets_02_error import clip_curve, grid_of, split_error
from labkit.course.widgets_02_grid import DATA, GridExplorer
from labkit.data import load_corpus
from labkit.models import load
from labkit.models.apply import map_weights
from labkit.models.walking import capture_inputs, linear_layers, weight_matrix

# %% [markdown]
# ## Weights are no integers
#
# Integers are cheap: an 8-bit multiplier is small, and four codes fit where one FP32 number lay.
# But can a weight simply be rounded to an integer? Take a matrix of the model.

# %%
model, tokenizer = load()
layers = linear_layers(model)
first_name = next(iter(layers))
weight = weight_matrix(layers[first_name]).detach().float().cpu()
print(first_name, tuple(weight.shape))

# %%
guess_zero = predict(
    "Round each weight of this matrix to the nearest integer. How many become 0?",
    ["hardly any", "about half", "nearly all"],
)

# %%
became_zero = float((torch.round(weight) == 0).float().mean())
guess_zero.compare(f"{became_zero:.0%} become 0", correct="nearly all")
assert became_zero > 0.9

# %% [markdown]
# ## The scale: how wide is one step?
#
# So measure in steps. The *scale* s is the width of a step, and the *code* q counts steps:
#
# > q = round(x / s)  and back  x̂ = q · s
#
# With b bits a *symmetric* grid has codes from -qmax to qmax, qmax = 2^(b-1) - 1.

# %%
x = torch.tensor([-1.1, -0.35, 0.0, 0.6, 1.5])
qmax = 2 ** (3 - 1) - 1
scale = x.abs().max() / qmax
codes = torch.round(x / scale)
print("qmax", qmax, " scale", float(scale))
for row in (x, codes, codes * scale, x - codes * scale):
    print("".join(f"{value:8.2f}" for value in row.tolist()))

# %% [markdown]
# The rows are x, q, x̂ and the error. Two things to keep: the largest magnitude lands exactly on
# the last code, and no error exceeds half a step. The code -4 would fit into 3 bits as well. It is
# left out, so that x and -x always get codes q and -q.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.1 · Symmetric parameters
#
# *5 minutes, difficulty 1 of 5.* `x` is a float tensor of any shape, `bits` an integer from 2 to
# 8. Return the scale, one positive number, so that the largest magnitude in `x` lands on the
# largest code. A tensor of zeros has scale 1 by convention.
#
# Stuck? `hint("02.1")`; `reveal("02.1")` shows the answer.


# %% tags=["exercise-02.1"]
def symmetric_scale(x, bits):
    """The step of a symmetric grid that just covers the tensor x; 1 if x is all zeros."""
    ...


check("02.1", symmetric_scale)

# %% [markdown]
# ## The zero-point: which code is 0?
#
# The SiLU in a Llama's MLP never gives less than -0.28, and at times 3 or more. A symmetric grid
# spends nearly half of its codes where nothing occurs. Shift it: the *zero-point* z is the code
# that stands for 0.
#
# > q = clamp(round(x / s) + z, qmin, qmax)  and back  x̂ = (q - z) · s

# %%
fig, axes = figures.new(2, 1, size=(6.8, 2.6), sharex=True)
for ax, symmetric in zip(axes, (True, False), strict=True):
    grid = grid_of(-0.28, 3.0, bits=3, symmetric=symmetric)
    ax.axvspan(-0.28, 3.0, color=figures.PALETTE[4], alpha=0.25)
    ax.plot(grid.values, [0] * len(grid.values), "|", markersize=18, markeredgewidth=2)
    for code, value in zip(grid.codes, grid.values, strict=True):
        ax.text(value, 0.55, str(code), ha="center")
    ax.set(ylim=(-1, 1), yticks=[], title="symmetric" if symmetric else "asymmetric, zero-point 1")
    ax.grid(False)
axes[1].set_xlabel("real value; shaded: what occurs after SiLU")
figures.show(
    fig,
    alt="At 3 bits the symmetric grid has three of its seven codes left of the shaded values "
    "from -0.28 to 3, where nothing occurs. Of the eight asymmetric codes seven lie within and "
    "one just left of them, and the steps are half as wide.",
)

# %%
for symmetric in (True, False):
    grid = grid_of(-0.28, 3.0, bits=3, symmetric=symmetric)
    occurring = torch.linspace(-0.28, 3.0, 1000)
    used = quantize(occurring, grid.scale, grid.zero_point, grid.qmin, grid.qmax).unique()
    kind = "symmetric " if symmetric else "asymmetric"
    print(f"{kind} {len(used)} of {len(grid.codes)} codes used, step {grid.scale:.3f}")

# %% [markdown]
# Both ends of the second grid are off by a fifth of a step. That is the price of an *integer*
# zero-point: the grid is shifted by up to half a step until one of its codes is exactly 0.

# %% [markdown]
# ### Why 0 must be exact
#
# Padding, masks and ReLU make zeros by the million. Without a code for exactly 0, each of them
# comes back as the same small error, and a sum collects them. Here are 1000 zeros on a grid that
# starts at -0.28 and was not moved onto 0.

# %%
zeros = torch.zeros(1000)
step = (3.0 + 0.28) / 7
careless = torch.round((zeros + 0.28) / step) * step - 0.28
careful = fake_quantize(zeros, *choose_qparams(-0.28, 3.0, 3, symmetric=False), 0, 7)
print(f"sum of 1000 zeros, 0 between two codes: {careless.sum():.1f}")
print(f"sum of 1000 zeros, 0 on a code:         {careful.sum():.1f}")

# %% [markdown]
# Hence three rules for [lo, hi]: widen it to contain 0; take s = (hi - lo) / (2^b - 1); *round*
# z = -lo / s, because a code is an integer. A range of zeros alone gets scale 1, zero-point 0.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.2 · Asymmetric parameters
#
# *6 minutes, difficulty 2 of 5.* `lo` and `hi` are Python floats, lo <= hi, with 0 inside or
# outside of the range; `bits` is 2 to 8. Return `(scale, zero_point)` for codes from 0 to
# 2**bits - 1; the zero-point is an integer. Mind constants: lo may equal hi.
#
# Stuck? `hint("02.2")`; `reveal("02.2")` shows the answer.


# %% tags=["exercise-02.2"]
def asymmetric_params(lo, hi, bits):
    """(scale, zero_point) of codes 0 .. 2**bits - 1 for real numbers from lo to hi."""
    ...


check("02.2", asymmetric_params)

# %% [markdown]
# ## Clamp, and in which order
#
# A value beyond the grid takes the first or the last code: it is *clipped*. The clamp comes after
# the zero-point was added and before the cast to an integer type. A cast alone wraps around:

# %%
large = torch.tensor([100.0, 127.0, 130.0, 300.0])
wrapped = large.to(torch.int32).to(torch.int8)
clamped = large.clamp(-127, 127).to(torch.int8)
print("cast first ", wrapped.tolist())
print("clamp first", clamped.tolist())

# %% [markdown]
# ## The same from torch
#
# `labkit.core.affine` holds these few lines. PyTorch computes the same parameters and, up to ties
# that fall the other way, the same values.

# %%
from torch.ao.quantization import MinMaxObserver

theirs = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
theirs(weight)
their_scale, their_zero_point = theirs.calculate_qparams()
scale, zero_point = choose_qparams(weight.min(), weight.max(), 8, symmetric=False)
print("same scale:     ", torch.allclose(scale, their_scale[0], rtol=1e-5))
print("same zero-point:", int(zero_point) == int(their_zero_point))

# %%
ours = fake_quantize(weight, scale, zero_point, 0, 255)
torchs = torch.fake_quantize_per_tensor_affine(weight, scale, zero_point, 0, 255)
print("same values:", float((ours - torchs).abs().gt(scale / 2).float().mean()) < 1e-4)
print("error <= half a step:", bool((weight - ours).abs().max() <= scale * 0.5001))

# %% [markdown]
# ## Move the range yourself
#
# Eleven dots, 3 bits. The upper end stands at 4, below the largest dot. First a guess.

# %%
guess_wider = predict(
    "The upper end moves from 4.0 to 5.5, onto the largest dot. What happens to the errors?",
    ["all shrink", "the largest dot's shrinks, the others' grow", "all grow"],
)

# %% [markdown]
# Then move the sliders. Above: which code each dot goes to. Below: the error of *every* real
# number, a saw of half a step either way, and a slope without end where the grid has ended.

# %%
explorer = GridExplorer()
figures.show_widget(
    explorer,
    alt="Sliders for both ends of a range; a number line with the grid they give, and the error "
    "of each real number on it.",
)

# %%
narrow, wide = (split_error(DATA[:-1], -1.0, end, 3, symmetric=False) for end in (4.0, 5.5))
trial = GridExplorer()
before = trial.grid, trial.error
trial.upper.value = 5.5
after = trial.grid, trial.error
for grid, error in (before, after):
    print(f"scale {grid.scale:.3f}, zero-point {grid.zero_point}, error of all {error:.3f}")
assert narrow.total < wide.total and after[1] < before[1]
guess_wider.compare(
    f"error of the other ten: {narrow.total:.3f}, then {wide.total:.3f}",
    correct="the largest dot's shrinks, the others' grow",
)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.3 · Quantize
#
# *6 minutes, difficulty 2 of 5.* `x` is a float tensor; `scale` is a float, the others are
# integers. Return the codes: a `torch.int32` tensor of x's shape with values from qmin to qmax.
# Round halves to even, as `torch.round` does.
#
# Stuck? `hint("02.3")`; `reveal("02.3")` shows the answer.


# %% tags=["exercise-02.3"]
def to_codes(x, scale, zero_point, qmin, qmax):
    """Integer codes (torch.int32, the shape of x) of real numbers x, from qmin to qmax."""
    ...


check("02.3", to_codes)

# %% [markdown]
# ## Real activations
#
# Weights are known in advance. Activations are not: they depend on the input. So run *calibration*
# text through the model: 64 sequences, 4 of them for now.


# %%
def rows_of(text, count):
    """The first `count` times 128 tokens of a text, int64 [count, 128]."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids[: count * 128]).reshape(count, 128)


sequences = rows_of(load_corpus("stdlib-prose", "calibration").text, 64)
print(tuple(sequences.shape))

# %% [markdown]
# Look at what the activation functions of the MLPs put out. At 4 bits, would it pay to clip?
# Divide the squared error of the whole range by the least of a few narrower ones, block by block.

# %%
NAMES = ("act_fn", "act", "activation_fn")
act_names = [name for name, _ in model.named_modules() if name.rsplit(".")[-1] in NAMES]
into = capture_inputs(model, sequences[:4], act_names)
outputs = {name: model.get_submodule(name)(x).detach().cpu() for name, x in into.items()}


def clipping_gain(x):
    """Squared error at 4 bits without clipping, over the least with some."""
    *clipped, whole = clip_curve(x, (0.3, 0.5, 0.7, 1.0), 4, symmetric=False)
    return whole.total / min(split.total for split in clipped)


gains = {name: clipping_gain(x) for name, x in outputs.items()}

# %% [markdown]
# Blocks differ. Take the one in which clipping matters most.

# %% tags=["nbval-ignore-output"]
print("gain by block:", [round(gain, 1) for gain in gains.values()])
hidden = outputs[max(gains, key=gains.get)]
print(f"{hidden.shape[0]} tokens, {hidden.shape[1]} features")
print(f"min {hidden.min():.2f}, median {hidden.median():.2f}, max {hidden.max():.2f}")
print(f"beyond half of the maximum: {(hidden > hidden.max() / 2).float().mean():.4%}")

# %% [markdown]
# Three facts to build on, whatever the digits: the least value is close to 0, the greatest is far
# away, and hardly any value is near it.

# %%
print("least value above -0.3:", bool(hidden.min() > -0.3))
print("greatest above 1:", bool(hidden.max() > 1))
far = float((hidden > hidden.max() / 2).float().mean())
print("fewer than 1 % beyond half of the maximum:", far < 0.01)
assert hidden.min() > -0.3 and hidden.max() > 1 and far < 0.01

# %% [markdown]
# ## Two errors that pull apart
#
# A narrow range has small steps, hence little *rounding error*; for values spread evenly within a
# step its mean square is s²/12. But it cuts more values off, and *clipping error* has no limit.

# %%
guess_keep = predict(
    "At 4 bits, what share of this range should the grid keep for the least squared error?",
    ["all of it", "more than half", "half or less"],
)

# %% tags=["nbval-ignore-output"]
curves = {bits: clip_curve(hidden, RATIOS, bits, symmetric=False) for bits in (8, 4)}
total = {bits: [split.total for split in curve] for bits, curve in curves.items()}
best = {bits: RATIOS[int(np.argmin(errors))] for bits, errors in total.items()}
bracket = ["half or less", "more than half", "all of it"][(best[4] > 0.5) + (best[4] == 1)]
guess_keep.compare(f"{best[4]:.0%}; at 8 bits {best[8]:.0%}", correct=bracket)

# %%
whole = {bits: curve[-1] for bits, curve in curves.items()}
print("4 bits: clipping pays:", total[4][-1] > 1.2 * min(total[4]))
print("more bits, wider range:", best[8] >= best[4])
law = whole[8].rounding / (whole[8].grid.scale ** 2 / 12)
print("8 bits: rounding error is of the size of s²/12:", 0.4 < law < 1.6)
assert total[4][-1] > 1.2 * min(total[4]) and best[8] >= best[4] and 0.4 < law < 1.6

# %%
fig, axes = figures.new(1, 2, size=(8.4, 3.6))
for ax, bits in zip(axes, (8, 4), strict=True):
    draw_curve(ax, RATIOS, curves[bits])
    ax.set_title(f"{bits} bits")
axes[1].set_ylabel("")
figures.show(
    fig,
    alt="As more of the range is kept, clipping error falls and rounding error rises; their sum "
    "is least where neither is. At 4 bits that is further inside the range than at 8.",
)

# %% [markdown]
# The same with a slider, on the same activation. Try 2 bits, then 8: find the best share by hand
# and compare with the green dot.

# %%
clip_explorer = ClipExplorer(hidden, unit="value after the activation function")
figures.show_widget(
    clip_explorer,
    alt="A slider for the share of the range that is kept; a histogram with the grid, and curves "
    "of rounding and clipping error.",
)

# %%
trial = ClipExplorer(hidden, unit="value")
errors = [trial.error]
trial.keep.value = trial.best
errors.append(trial.error)
print("the slider finds the least error:", errors[1].total == min(s.total for s in trial.curve))
print("it rounds less and clips more:", errors[1].rounding < errors[0].rounding)
assert errors[1].total < errors[0].total and errors[1].clipping > errors[0].clipping

# %% [markdown]
# ## Observers: who chooses the range?
#
# | observer | range |
# |---|---|
# | min-max | all that was seen |
# | EMA | moving average of each batch's min and max |
# | percentile | all but a fixed share of the values |
# | MSE | least squared error |
# | KL | least information lost (TensorRT) |
#
# Each watches batches go by and keeps a summary of fixed size.

# %%
seen = {kind: make() for kind, make in OBSERVERS.items()}
for observer in seen.values():
    for batch in hidden.split(32):
        observer.observe(batch)

# %%
guess_percentile = predict(
    "Percentile 99.9 gives up the extremes. At 8 bits, is its squared error below min-max's?",
    ["lower", "about the same", "higher"],
)

# %% tags=["nbval-ignore-output"]
ranges, errors = {}, {}
for bits in (8, 4):
    for kind, observer in seen.items():
        lo, hi = (float(end) for end in observer.range(bits, symmetric=False))
        ranges[kind, bits] = lo, hi
        errors[kind, bits] = split_error(hidden, lo, hi, bits, symmetric=False).total
        print(f"{bits} bits  {kind:11}{lo:7.2f} to {hi:5.2f}   error {errors[kind, bits]:.2e}")

# %%
gain = {bits: errors["minmax", bits] / errors["percentile", bits] for bits in (8, 4)}
verdict = "lower" if gain[8] > 1.1 else "higher" if gain[8] < 0.9 else "about the same"
guess_percentile.compare(verdict, correct=verdict)
print("at 4 bits the percentile wins:", gain[4] > 1)
best_is_mse = all(errors["mse", b] <= 1.05 * errors[k, b] for k in seen for b in (8, 4))
print("MSE has the least squared error, or nearly:", best_is_mse)
assert verdict == "higher" and gain[4] > 1 and best_is_mse

# %% [markdown]
# No observer is best at every width. With 256 codes what was clipped costs more than rounding,
# with 16 it is the other way round. MSE weighs both, by a search. KL asks what information is
# lost, not how far a value moved: with few codes it may cut nearly the whole tail off.

# %%
fig, (top, bottom) = figures.new(2, 1, size=(7, 5), sharex=True)
top.hist(hidden.flatten().numpy(), bins=150, log=True, color=figures.PALETTE[5])
top.set(ylabel="values in a bin")
for row, kind in enumerate(seen):
    for bits, shift in ((8, 0.17), (4, -0.17)):
        lo, hi = ranges[kind, bits]
        colour = figures.PALETTE[0 if bits == 8 else 1]
        bottom.barh(row + shift, hi - lo, 0.3, left=lo, color=colour)
bottom.set(yticks=range(len(seen)), yticklabels=seen, xlabel="value after the activation function")
bottom.invert_yaxis()
bottom.legend(bottom.patches[:2], ["8 bits", "4 bits"], loc="lower right")
figures.show(
    fig,
    alt="Above, a histogram of activations: a peak at 0 and a long thin tail to the right. Below, "
    "the range of each observer: min-max covers the whole tail, MSE at 4 bits much less of it.",
)

# %%
widest = ranges["minmax", 8]
inside = [widest[0] <= lo <= hi <= widest[1] for lo, hi in ranges.values()]
shorter = ranges["mse", 4][1] < ranges["mse", 8][1]
print("no range is wider than min-max:", all(inside))
print("MSE cuts more at 4 bits than at 8:", shorter)
assert all(inside) and shorter

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.4 · Percentile observer
#
# *6 minutes, difficulty 2 of 5.* `batches` is a list of float tensors of any shapes, `percentile`
# a number such as 99.9. Return the threshold t, one number, such that [-t, t] holds that
# percentage of all values of all batches. Any way to interpolate between two values will do.
#
# Stuck? `hint("02.4")`; `reveal("02.4")` shows the answer.


# %% tags=["exercise-02.4"]
def percentile_threshold(batches, percentile):
    """The t whose range [-t, t] holds `percentile` percent of all values in the tensors."""
    ...


check("02.4", percentile_threshold)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.5 · MSE observer
#
# *8 minutes, difficulty 3 of 5.* `x` is a float tensor, not all zeros. Try the thresholds
# t = max|x| · k / steps for k = 1 to `steps`; quantize x symmetrically over [-t, t] with `bits`
# bits (largest code 2**(bits-1) - 1), and return the t with the least sum of squared errors.
#
# Stuck? `hint("02.5")`; `reveal("02.5")` shows the answer.


# %% tags=["exercise-02.5"]
def best_threshold(x, bits, steps):
    """Of max|x| * k / steps, k = 1 .. steps, the t whose grid over [-t, t] fits x best."""
    ...


check("02.5", best_threshold)

# %% [markdown]
# ## Symmetric or asymmetric?
#
# A zero-point is worth as much as the side of 0 that stays empty. Compare signal to noise (SQNR,
# in dB; one bit more is worth about 6) at 8 bits: every weight matrix, and every activation
# function's output.

# %%
guess_gain = predict(
    "What does a zero-point gain on the outputs of the activation function?",
    ["about 0 dB", "about 6 dB", "about 20 dB"],
)


# %%
def zero_point_gain(x, bits=8):
    """SQNR with a zero-point minus SQNR without one, dB, at min-max range."""
    lo, hi = float(x.min()), float(x.max())
    noise = [split_error(x, lo, hi, bits, symmetric).total for symmetric in (True, False)]
    return 10 * math.log10(noise[0] / noise[1])


of_weights = [zero_point_gain(weight_matrix(m).detach().cpu()) for m in layers.values()]
of_outputs = [zero_point_gain(x) for x in outputs.values()]

# %%
mean_weight, mean_output = np.mean(of_weights), np.mean(of_outputs)
verdict = "about 0 dB" if mean_output < 2.5 else "about 6 dB" if mean_output < 10 else "about 20 dB"
guess_gain.compare(verdict, correct=verdict)
print("weights gain less than half of that:", mean_weight < mean_output / 2)
assert verdict == "about 6 dB" and mean_weight < mean_output / 2
assert np.median(of_weights) < 2

# %%
LABELS = ["weight matrices", "outputs of activation functions"]
fig, ax = figures.new(size=(6.8, 3.2))
ax.hist([of_weights, of_outputs], bins=np.arange(-1, 10.5, 0.5), label=LABELS)
ax.set(xlabel="gain in SQNR from a zero-point, dB", ylabel="tensors")
ax.legend()
figures.show(
    fig,
    alt="A zero-point gains most weight matrices less than two dB, and outputs of activation "
    "functions several, about one bit.",
)

# %% [markdown]
# Weights lie on both sides of 0, activations after SiLU or ReLU on one. So practice is: symmetric
# weights, and asymmetric activations where they are one-sided. Later you will see why kernels
# insist on the first half.

# %% [markdown]
# ## Static or dynamic?
#
# *Static*: observers watch calibration text, then ranges are frozen. *Dynamic*: the range of every
# input is taken when it arrives, at the price of one more pass over it. To measure both, put a
# function in front of each linear layer.


# %%
@contextlib.contextmanager
def inputs_through(change, version=model):
    """While open, each linear layer of `version` reads change(name, x) instead of x."""

    def hook(name):
        return lambda module, args: (change(name, args[0]), *args[1:])

    found = linear_layers(version)
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# %% [markdown]
# Calibration is a change that changes nothing: it observes.


# %%
@torch.inference_mode()
def calibrate(observers, batches):
    """Show each layer's inputs to its observers: kind -> (name -> Observer)."""

    def watch(name, x):
        for of_layers in observers.values():
            of_layers[name].observe(x)
        return x

    with inputs_through(watch):
        for batch in batches:
            model(batch.to(model.device), use_cache=False)


# %%
def static(observers, bits):
    """A change with frozen ranges: one scale and zero-point a layer."""
    params = {name: o.qparams(bits, symmetric=False) for name, o in observers.items()}
    return lambda name, x: fake_quantize(x, *params[name], 0, 2**bits - 1)


def dynamic(bits):
    """A change that takes the range of each input anew."""

    def change(name, x):
        scale, zero_point = choose_qparams(x.min(), x.max(), bits, symmetric=False)
        return fake_quantize(x, scale, zero_point, 0, 2**bits - 1)

    return change


# %%
from labkit.data.tasks import TASKS
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.tasks import task_accuracy

heldout = load_corpus("stdlib-prose", "heldout").text


def heldout_perplexity(change=None, version=model):
    """Perplexity on held-out prose, one sequence of 256 tokens at a time."""
    with inputs_through(change, version) if change else contextlib.nullcontext():
        size = {"context": 256, "max_tokens": 1024, "batch_size": 1}
        return perplexity(version, tokenizer, heldout, **size).value


# %%
guess_static = predict(
    "Activations at 8 bits, weights untouched: what does the frozen min-max range cost?",
    ["perplexity up by less than a tenth", "up by a tenth to a half", "more than that"],
)


# %%
def fresh(*kinds):
    """New observers for every layer: kind -> (name -> Observer)."""
    return {kind: {name: OBSERVERS[kind]() for name in layers} for kind in kinds}


observers = fresh("minmax", "percentile")
calibrate(observers, sequences[:16].split(4))

# %% tags=["nbval-ignore-output"]
fp32 = heldout_perplexity()
ways = {"static min-max": lambda b: static(observers["minmax"], b)}
ways["static percentile"] = lambda b: static(observers["percentile"], b)
ways["dynamic"] = dynamic
BITS = (8, 6, 5, 4)
ppl = {way: [heldout_perplexity(make(bits)) for bits in BITS] for way, make in ways.items()}
print(f"{'bits':18}" + "".join(f"{bits:10}" for bits in BITS) + f"   FP32 {fp32:.1f}")
for way, values in ppl.items():
    print(f"{way:18}" + "".join(f"{value:10.1f}" for value in values))
rise = ppl["static min-max"][0] / fp32
option = guess_static.options[int(rise > 1.1) + int(rise > 1.5)]
guess_static.compare(f"{rise:.3f} times as high", correct=option)

# %%
fewer_is_worse = {way: ppl[way][-1] > ppl[way][0] for way in ("static min-max", "dynamic")}
print("with min and max, 4 bits are worse than 8:", fewer_is_worse)
assert all(fewer_is_worse.values()) and ppl["dynamic"][0] < 1.5 * fp32

# %%
fig, ax = figures.new(size=(6.8, 3.4))
for (way, values), marker in zip(ppl.items(), "os^", strict=True):
    ax.plot(BITS, [value / fp32 for value in values], marker=marker, label=way)
ax.axhline(1, linestyle="--", color="0.4", label="FP32")
ax.set(yscale="log", xticks=BITS, xlabel="bits of every activation", ylabel="perplexity / FP32")
highest = max(max(values) for values in ppl.values()) / fp32
ax.yaxis.set_major_formatter("{x:g}")
ax.yaxis.set_minor_formatter("{x:.3g}" if highest < 8 else "")
ax.legend()
figures.show(
    fig,
    alt="Perplexity with quantized activations over that of FP32, three lines: with min and max, "
    "static or dynamic, it climbs as bits go down from 8 to 4.",
)

# %% [markdown]
# All lines share one weakness: a *single* scale for all tokens and features of a tensor. A few
# features are far larger than the rest, and they set it. Chapter 04 is about them.

# %% [markdown]
# ## How much calibration data?
#
# Watch the ranges of all layers while 64 sequences go by, and stop after 1, 2, 4, ... of them.

# %%
guess_grow = predict(
    "From 1 to 64 sequences, how much does a typical layer's min-max range grow?",
    ["it does not", "by less than half", "by half or more"],
)

# %%
COUNTS = (1, 2, 4, 8, 16, 32, 64)
watching = fresh("minmax", "percentile")
spans, frozen = {kind: [] for kind in watching}, {}
for start, end in zip((0, *COUNTS), COUNTS, strict=False):
    calibrate(watching, sequences[start:end].split(16))
    for kind, of_layers in watching.items():
        found = [o.range(8, symmetric=False) for o in of_layers.values()]
        spans[kind].append(torch.tensor([float(hi - lo) for lo, hi in found]))
    frozen[end] = static(watching["minmax"], 8)
share = {kind: [(s / rows[-1]).median().item() for s in rows] for kind, rows in spans.items()}

# %% tags=["nbval-ignore-output"]
growth = 1 / share["minmax"][0]
option = guess_grow.options[int(growth > 1.02) + int(growth >= 1.5)]
guess_grow.compare(f"to {growth:.2f} times, the median of all layers", correct=option)
by_count = {count: heldout_perplexity(frozen[count]) for count in (1, 4, 16, 64)}
print("perplexity, static min-max at 8 bits:")
print({count: round(value, 2) for count, value in by_count.items()})

# %%
grows = all((b >= a).all() for a, b in zip(spans["minmax"], spans["minmax"][1:], strict=False))
print("a min-max range only ever grows:", grows)
print("the percentile starts closer to its end:", share["percentile"][0] > share["minmax"][0])
near_end = max(by_count[16], by_count[64]) / min(by_count[16], by_count[64])
print("perplexity with 16 and with 64 agrees within 20 %:", near_end < 1.2)
assert grows and share["percentile"][0] > share["minmax"][0] and near_end < 1.2

# %%
fig, (left, right) = figures.new(1, 2, size=(8.4, 3.4))
for kind, marker in (("minmax", "o"), ("percentile", "s")):
    left.plot(COUNTS, share[kind], marker=marker, label=kind)
left.set(xscale="log", xlabel="calibration sequences", ylabel="range / range after 64")
left.legend()
right.plot(list(by_count), list(by_count.values()), marker="o", label="static min-max, 8 bits")
right.axhline(fp32, linestyle="--", color="0.4", label="FP32")
right.set(xscale="log", xlabel="calibration sequences", ylabel="perplexity")
right.set_ylim(0.9 * fp32, 1.1 * max(by_count.values()))
right.legend()
for ax in (left, right):
    ax.set_xticks(COUNTS, [str(count) for count in COUNTS])
    ax.minorticks_off()
figures.show(
    fig,
    alt="Left: the min-max range keeps growing with more calibration sequences, the percentile "
    "is near its end after the first. Right: perplexity with those ranges, beside FP32.",
)

# %% [markdown]
# However much was sampled, a rarer extreme is still to come, so min-max never settles. Percentile,
# MSE and KL rest on the bulk of the data. What matters more than the count is that calibration
# text looks like the text to come.

# %% [markdown]
# ## Multiply on integers
#
# Real savings need the product itself on integers. Multiply out, for one output:
#
# > Σ (qx - zx)(qw - zw) = Σ qx·qw - zx·Σ qw - zw·Σ qx + K·zx·zw
#
# Afterwards multiply once by both scales. The products fit into 32 bits, if there are not too
# many.

# %%
guess_depth = predict(
    "At worst, how many products of uint8 and int8 codes does an int32 accumulator hold?",
    ["about 60", "about 60 thousand", "about 60 million"],
)

# %%
depth = (2**31 - 1) // (255 * 127)
guess_depth.compare(f"{depth:,}", correct="about 60 thousand")
print("int16 holds", (2**15 - 1) // (255 * 127))

# %% [markdown]
# | term | depends on | computed |
# |---|---|---|
# | Σ qx·qw | both | by the integer units |
# | zx·Σ qw | weights | once, part of the bias |
# | zw·Σ qx | input | at every call |
# | K·zx·zw | neither | once |
#
# With symmetric weights zw = 0, and the only expensive correction is gone.

# %% [markdown]
# With real codes: one layer's inputs (asymmetric) and its weight (symmetric), against the same
# product in floating point.

# %%
x = capture_inputs(model, sequences[:1], [first_name])[first_name].cpu()
x_scale, x_zero = choose_qparams(x.min(), x.max(), 8, symmetric=False)
w_scale, _ = choose_qparams(weight.min(), weight.max(), 8, symmetric=True)
x_codes = quantize(x, x_scale, x_zero, 0, 255)
w_codes = quantize(weight, w_scale, 0, -127, 127)

# %%
accumulator = x_codes @ w_codes.T - x_zero * w_codes.sum(dim=1, dtype=torch.int32)
y = accumulator * (x_scale * w_scale)
simulated = dequantize(x_codes, x_scale, x_zero) @ dequantize(w_codes, w_scale, 0).T
print("accumulator:", accumulator.dtype, tuple(accumulator.shape))
print("equals the simulation:", torch.allclose(y, simulated, rtol=1e-3, atol=1e-3))
print("SQNR against FP32 above 15 dB:", sqnr_db(x @ weight.T, y) > 15)
assert torch.allclose(y, simulated, rtol=1e-3, atol=1e-3)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 02.6 · Integer matmul with zero-points
#
# *10 minutes, difficulty 4 of 5.* `x_codes` is uint8 [tokens, in] with one integer `x_zero`;
# `w_codes` is uint8 [out, in] with an integer zero-point for each row, `w_zero` [out, 1]. Return
# the integers [tokens, out] that the docstring defines. Work as a kernel does: keep the product of
# the codes, and correct it.
#
# Stuck? `hint("02.6")`; `reveal("02.6")` shows the answer.


# %% tags=["exercise-02.6"]
def integer_matmul(x_codes, x_zero, w_codes, w_zero):
    """sum_k (x_codes[t,k] - x_zero) * (w_codes[o,k] - w_zero[o,0]), integers [tokens, out]."""
    ...


check("02.6", integer_matmul)

# %% [markdown]
# ## What breaks this
#
# Two inputs, made to defeat. A *spike*: one value of 1000 among 10 000 ordinary ones, in
# calibration and in use. A *shift*: in use everything is four times as large. Who survives which?

# %%
guess_break = predict(
    "Which of the three ways keeps the ordinary values intact in both cases?",
    ["static min-max", "static percentile", "dynamic", "none"],
)

# %%
ordinary = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
spike = torch.cat([ordinary, torch.tensor([1000.0])])
# what an observer sees in calibration, and what arrives later
CASES = {"spike": (spike, ordinary), "shift": (ordinary, 4 * ordinary)}


def intact(kind, watched, arriving):
    """SQNR (dB) of the ordinary values at 8 bits; a dynamic range is the arriving tensor's own."""
    observer = OBSERVERS["percentile" if "percentile" in kind else "minmax"]()
    dynamic_input = spike if watched is spike else arriving
    observer.observe(dynamic_input if kind == "dynamic" else watched)
    params = observer.qparams(8, symmetric=True)
    return sqnr_db(arriving, fake_quantize(arriving, *params, -127, 127))


# %%
WAYS = ("static min-max", "static percentile", "dynamic")
left_over = {(kind, case): intact(kind, *CASES[case]) for kind in WAYS for case in CASES}
for kind in WAYS:
    print(f"{kind:18}" + "".join(f"  {case} {left_over[kind, case]:3.0f} dB" for case in CASES))
survivors = [kind for kind in WAYS if min(left_over[kind, case] for case in CASES) > 25]
guess_break.compare(survivors or "none", correct=survivors[0] if survivors else "none")
assert not survivors

# %% [markdown]
# A spike ruins whoever looks at the maximum, a shift ruins whoever looked earlier. There is no
# range for all seasons: hence finer granularity (chapter 03) and removing outliers beforehand
# (chapter 04).

# %% [markdown]
# On the model: calibrate on one sentence, repeated to fill 64 sequences. As many tokens as before,
# and none of the variety.

# %%
guess_monotone = predict(
    "Of the inputs of all layers on held-out prose, how many do those ranges clip, compared to "
    "ranges calibrated on prose?",
    ["as many", "several times as many", "over a hundred times as many"],
)

# %%
monotone = fresh("minmax")
calibrate(monotone, rows_of("Return the number of items in the list. " * 2000, 64).split(16))
arriving = capture_inputs(model, rows_of(heldout, 16), list(layers))


def clipped_share(observers):
    """Share of the linear layers' inputs on held-out prose that the ranges cut off."""
    outside = 0
    for name, x in arriving.items():
        lo, hi = observers[name].range()
        outside += int(((x < lo) | (x > hi)).sum())
    return outside / sum(x.numel() for x in arriving.values())


# %% tags=["nbval-ignore-output"]
clipped = {
    "prose": clipped_share(watching["minmax"]),
    "one sentence": clipped_share(monotone["minmax"]),
}
damage = {"prose": by_count[64]}
damage["one sentence"] = heldout_perplexity(static(monotone["minmax"], 8))
for label in clipped:
    print(f"{label:13}{1e6 * clipped[label]:8.1f} of a million clipped", end="")
    print(f"   perplexity {damage[label]:.1f}")
times = clipped["one sentence"] / max(clipped["prose"], 1e-7)
option = guess_monotone.options[int(times > 2) + int(times > 100)]
guess_monotone.compare(f"{times:.0f} times as many", correct=option)

# %%
print("one sentence clips several times as much:", times > 5)
assert times > 5 and clipped["one sentence"] > 1e-5

# %% [markdown]
# The share of clipped values is cheap to count while a model serves. It tells of a shift in the
# input before users do.

# %% [markdown]
# ## The whole model, before and after
#
# One scale for each weight matrix, 4 bits: once with the min-max range, once with the range of
# least squared error.

# %%
guess_whole = predict(
    "Which will help a 4-bit weight matrix with one scale more?",
    ["a better range", "one bit more", "about the same"],
)


# %%
def per_tensor(kind, bits):
    """A change of weights: one symmetric scale a matrix, its range from an observer."""

    def change(name, w):
        observer = OBSERVERS[kind]()
        observer.observe(w)
        qmax = 2 ** (bits - 1) - 1
        return fake_quantize(w, *observer.qparams(bits, symmetric=True), -qmax, qmax)

    return change


VERSIONS = {"8 bits": ("minmax", 8), "5 bits": ("minmax", 5), "4 bits": ("minmax", 4)}
VERSIONS |= {"4 bits, MSE range": ("mse", 4), "3 bits, MSE range": ("mse", 3)}
models = {label: map_weights(model, per_tensor(*how)) for label, how in VERSIONS.items()}


# %%
def layer_sqnr(version):
    """SQNR in dB of every linear layer's weight, by name."""
    after = linear_layers(version)
    return {n: sqnr_db(weight_matrix(m), weight_matrix(after[n])) for n, m in layers.items()}


sqnr = {label: layer_sqnr(version) for label, version in models.items()}
mean_sqnr = {label: np.mean(list(values.values())) for label, values in sqnr.items()}
better_range = mean_sqnr["4 bits, MSE range"] - mean_sqnr["4 bits"]
one_bit = mean_sqnr["5 bits"] - mean_sqnr["4 bits"]
print("a better range never costs signal:", better_range > 0)
print("one bit more is worth 5 to 8 dB:", 5 < one_bit < 8)
assert better_range > 0 and 5 < one_bit < 8

# %% tags=["nbval-ignore-output"]
gap = better_range - one_bit
option = guess_whole.options[2 if abs(gap) < 1 else 0 if gap > 0 else 1]
guess_whole.compare(f"range +{better_range:.1f} dB, one bit +{one_bit:.1f} dB", correct=option)
assert option in guess_whole.options


# %%
def as_table(values):
    """name -> number as a matrix [kind of layer, block], with the kinds' names."""
    kinds = list(dict.fromkeys(name.split(".")[-1] for name in values))
    rows = [[v for name, v in values.items() if name.split(".")[-1] == kind] for kind in kinds]
    return np.array(rows), kinds


fig, axes = figures.new(1, 2, size=(8.6, 3.2), sharey=True)
tables = [as_table(sqnr[label]) for label in ("4 bits", "4 bits, MSE range")]
span = {"vmin": min(t.min() for t, _ in tables), "vmax": max(t.max() for t, _ in tables)}
for ax, (table, kinds), title in zip(axes, tables, ("min-max", "MSE range"), strict=True):
    picture = ax.imshow(table, aspect="auto", cmap=figures.HEAT, **span)
    ax.set(title=title, xlabel="decoder block", yticks=range(len(kinds)), yticklabels=kinds)
    ax.grid(False)
fig.colorbar(picture, ax=axes, label="SQNR, dB")
figures.show(fig, alt="SQNR of all weight matrices at 4 bits: brighter with the MSE range.")

# %% [markdown]
# And the model itself: perplexity on held-out prose and right answers in the four tasks, before
# and after. The last version computes with 8-bit weights *and* 8-bit static activations.

# %% tags=["nbval-ignore-output"]
runs = {"FP32": (model, None)} | {label: (version, None) for label, version in models.items()}
runs["8 bits, activations too"] = models["8 bits"], static(watching["minmax"], 8)
result = {}
for label, (version, change) in runs.items():
    value = heldout_perplexity(change, version)
    with inputs_through(change, version) if change else contextlib.nullcontext():
        tasks = [task_accuracy(version, tokenizer, task, 25) for task in TASKS]
    result[label] = value, float(np.mean([task.accuracy for task in tasks]))
    print(f"{label:24}perplexity {value:8.2f}   right {result[label][1]:4.0%}")

# %%
base = result["FP32"][0]
print("8-bit weights cost less than 10 %:", result["8 bits"][0] < 1.1 * base)
print("4-bit weights cost more than 8-bit:", result["4 bits"][0] > result["8 bits"][0])
assert result["8 bits"][0] < 1.1 * base and result["4 bits"][0] > result["8 bits"][0]

# %%
fig, axes = figures.new(1, 2, size=(8.4, 3.2), sharey=True)
labels = list(result)
for part, ax in enumerate(axes):
    values = [result[label][part] for label in labels]
    ax.axvline(values[0], linestyle="--", color="0.4")
    ax.plot(values, labels, "o", color=figures.PALETTE[0], markersize=9)
    ax.plot(values[0], labels[0], "o", color=figures.PALETTE[6], markersize=9)
axes[0].invert_yaxis()
spread = max(value for value, _ in result.values()) / base
axes[0].set(xlabel="perplexity, held-out prose", xscale="log" if spread > 5 else "linear")
axes[1].set(xlabel="share of right answers", xlim=(0, 1.03))
figures.show(
    fig,
    alt="The whole model before and after, perplexity and right answers: with 8-bit weights it "
    "stays near FP32, with 4 bits and one scale a matrix it moves away.",
)

# %% [markdown]
# 8 bits are easy even with one scale a matrix. At 4 bits the range matters, and no range is good
# enough: a whole matrix is too much for one scale. That is chapter 03.

# %% [markdown]
# ## Explain it in an interview

# %% [markdown] tags=["interview"]
# **Symmetric or asymmetric: for weights, for activations after SiLU, and why do kernels care?**
#
# <details><summary>A model answer</summary>
#
# Weights symmetric, one-sided activations asymmetric. Trained weights lie about evenly on both
# sides of 0, so a zero-point buys a dB or less. After SiLU or ReLU one side is empty; a symmetric
# grid wastes nearly half of its codes there, about one bit, some 6 dB.
#
# Kernels care because of the cross terms. Multiplied out, (qx - zx)(qw - zw) adds three
# corrections to the integer product. zx·Σqw and K·zx·zw are constants that fold into the bias.
# zw·Σqx depends on the input and needs a row sum in every call; with symmetric weights it is gone.
#
# Follow-up: with weight-only 4-bit and groups, asymmetric weights are common (AWQ, GGUF's _1 and
# K types): nothing is multiplied in integers, and 16 codes are too few to waste.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why must real 0 be exactly representable?**
#
# <details><summary>A model answer</summary>
#
# Because exact zeros are everywhere: padding, masked positions, ReLU outputs, pruned weights. If 0
# came back as a small number, all of them would carry the *same* error, and a sum over them grows
# with their count instead of averaging out. Convolution borders would glow, padded tokens would
# talk.
#
# So the range is widened to contain 0, and the zero-point is rounded to an integer code. The price
# is at most half a step at the ends. It also explains two classic bugs: data from 2 to 6 quantized
# with a zero-point outside of the codes, and a clamped zero-point that moves the grid away from
# the data.
#
# </details>

# %% [markdown] tags=["interview"]
# **An activation's maximum is 20 times its 99.9th percentile. Which range do you choose?**
#
# <details><summary>A model answer</summary>
#
# It depends on the bits and on what those values do. Rounding error goes with the square of the
# range, clipping error with the square of what was cut off. At 8 bits steps are small, and
# clipping a few large values can cost more than it saves: in this notebook percentile 99.9 loses
# to min-max at 8 bits and wins at 4. An MSE search weighs both.
#
# Then measure perplexity, because squared error treats all values alike, and in language models
# the extreme features often matter. If they sit in fixed channels, the range is the wrong tool:
# per-channel or per-token scales, SmoothQuant, or the LLM.int8 split.
#
# </details>

# %% [markdown] tags=["interview"]
# **Static or dynamic quantization of activations?**
#
# <details><summary>A model answer</summary>
#
# Static ranges come from calibration and are constants: no extra pass at run time, scales fold
# into neighbouring operations, and integer-only hardware can run it. The risk is input unlike the
# calibration text, which is clipped without any warning.
#
# Dynamic ranges are taken from each input: nothing to calibrate, robust to a shift, but one
# reduction over each tensor before it can be quantized, and one spike still ruins its tensor.
#
# For LLMs on GPUs and CPUs: dynamic per token, because the reduction is cheap beside the matrix
# product. For convolutional networks on NPUs: static. In both cases monitor the share of clipped
# values in production.
#
# </details>

# %% [markdown] tags=["interview"]
# **How many calibration samples do you need, and what goes wrong with too few or wrong ones?**
#
# <details><summary>A model answer</summary>
#
# Ranges need little: tens to a few hundred sequences. A percentile or an MSE range rests on the
# bulk of the data and settles after a handful. Min-max rests on one extreme value and grows for
# ever, a little with each doubling, so more data also means coarser steps.
#
# Too few: extremes unseen, values clipped in production. Wrong ones are worse: ranges of prose do
# not fit code, long contexts or another language, and no number of samples mends that. Take
# samples from the traffic to come, cover its domains, keep a held-out set, and plot the metric
# against the number of samples to show that it has levelled off.
#
# </details>

# %% [markdown] tags=["interview"]
# **Write quantize() on a whiteboard. Where are the bugs?**
#
# <details><summary>A model answer</summary>
#
# clamp(round(x / scale) + zero_point, qmin, qmax), then cast. The order is the point:
#
# - casting before clamping wraps 130 around to -126;
# - clamping before adding the zero-point leaves codes outside of the range;
# - truncating instead of rounding doubles the worst error, and floor shifts the mean;
# - round half up adds a bias where ties are common; half to even does not;
# - scale 0 for an empty range gives NaN; NaN and infinity must be refused, not cast;
# - the scale is rounded to its storage type (FP16) *before* the codes are chosen.
#
# Tests: 0 becomes the zero-point, |x - x̂| <= scale / 2 inside the range, quantizing twice changes
# nothing, order is kept.
#
# </details>

# %% [markdown] tags=["interview"]
# **A model is fine in FP32 and falls apart for one customer in static INT8. How do you find out
# why?**
#
# <details><summary>A model answer</summary>
#
# First separate weights from activations: run with only one of them quantized. Weights do not know
# the customer, so suspect activation ranges. Log, layer by layer, the share of clipped values and
# the SQNR on that customer's inputs beside the calibration set.
#
# Many clipped values: the domain was missing from calibration; add it, or go dynamic. None clipped
# but low SQNR: a few huge features stretch the range; finer granularity, a percentile or MSE
# range, SmoothQuant, or keep those layers in 16 bits. Then confirm with the customer's own task,
# and add those samples to the regression set.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Integer-arithmetic-only inference](https://arxiv.org/abs/1712.05877), Jacob and others, 2018:
#   scale, zero-point and the integer product, as used here.
# - [A white paper on quantization](https://arxiv.org/abs/2106.08295), Nagel and others, 2021:
#   sections 2 and 3.
# - [Integer quantization: principles and evaluation](https://arxiv.org/abs/2004.09602), Wu and
#   others, 2020: observers compared on many networks.

# %% [markdown]
# - [Post-training 4-bit quantization](https://arxiv.org/abs/1810.05723), Banner and others, 2019:
#   the best clipping range in closed form.
# - [8-bit inference with TensorRT](https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf),
#   Migacz, 2017: the slides that brought KL calibration.
# - [gemmlowp](https://github.com/google/gemmlowp/blob/master/doc/quantization.md): zero-points in
#   a real kernel.
