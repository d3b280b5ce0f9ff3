# %% [markdown]
# # 01 · Number formats
#
# **What can each format say, and where is it silent?**
#
# **You will be able to**
# - read and write the bits of any float, integer or 4-bit code
# - say where a format overflows, underflows, or is too coarse for a tensor
# - explain FP16, BF16, both FP8s, INT8, INT4, FP4 and NF4 by what each gives up
# - say why sums are kept in FP32, and why FP16 training needs loss scaling
# - tell whether a model fits on a GPU, KV cache included
#
# **Time:** 75 minutes · **Before this:** [00_start_here](00_start_here.ipynb)

# %%
import contextlib
import math

import numpy as np
import torch

from labkit.core.dtypes import CODEBOOKS, all_values, cast, decode, encode, fields, get_format
from labkit.core.memory import estimate, gib, kv_cache_bytes, weight_bytes
from labkit.core.metrics import logit_kl, mse, sqnr_db
from labkit.core.microscaling import quantize_mxfp4
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.course import check, figures, hint, reveal
from labkit.course.chapters.exercises_01_levels import power_of_two_scale
from labkit.course.prediction import predict
from labkit.course.widgets_01_bits import BitExplorer
from labkit.course.widgets_01_memory import MemoryExplorer, cache_bytes, memory_figure, shape_of
from labkit.course.widgets_01_pictures import bit_layouts, code_table, model_map

# %% [markdown]
# ## Two ways to spend 16 bits
#
# FP16 and BF16 both spend 16 bits on a number. They do not hear the same numbers.

# %%
guess_16 = predict(
    "Who can store 70000 to within 1 %, and who can tell 1.001 from 1?",
    [
        "both formats do both",
        "FP16 stores 70000, BF16 tells 1.001",
        "BF16 stores 70000, FP16 tells 1.001",
    ],
)

# %%
for x in (70000.0, 1.001):
    print(f"{x:>7g}   FP16: {cast(x, 'fp16'):<10.6g} BF16: {cast(x, 'bf16'):.6g}")
guess_16.compare(
    "BF16 the large one, FP16 the close one", correct="BF16 stores 70000, FP16 tells 1.001"
)

# %% [markdown]
# `cast` gives a number as the format remembers it. FP16 answers 70000 with infinity; BF16 cannot
# tell 1.001 from 1. One has precision, the other range. Why?

# %% [markdown]
# ## A float is scientific notation
#
# $$(-1)^{sign} \times 1.mantissa \times 2^{exponent - bias}$$
#
# Three fields lie side by side. The exponent is stored as a count from 0, so a constant, the
# *bias*, is subtracted. The 1 before the point is not stored: it is *implicit*.

# %%
code = encode(math.pi, "fp16")
sign, exponent, mantissa = fields(code, "fp16")
print(f"code {code:#06x} = {sign} | {exponent} | {mantissa}")
significand = 1 + int(mantissa, 2) / 2**10
power = int(exponent, 2) - 15  # FP16's bias
print(f"{significand} x 2^{power} = {significand * 2.0**power}")
assert significand * 2.0**power == decode(code, "fp16")

# %% [markdown]
# Formats differ in how many bits each field gets. Beside each row: its smallest and largest
# positive number (for integers and NF4: the smallest and the largest).

# %%
SHOWN = ["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "int8", "int4", "nf4"]
figures.show(
    bit_layouts(SHOWN),
    alt="Bits of nine formats by field. FP32 has 8 exponent and 23 mantissa bits, FP16 5 and 10, "
    "BF16 8 and 7, the FP8s 4 and 3, 5 and 2. Integers have no exponent.",
)

# %% [markdown]
# Exponent bits buy range, mantissa bits buy precision. BF16 is FP32 with the lower half cut off:
# the same range, and a conversion that needs no arithmetic.

# %%
exact = all_values("bf16")
exact = exact[torch.isfinite(exact)]
assert torch.equal(encode(exact, "fp32") >> 16, encode(exact, "bf16").long())
print(f"all {len(exact)} finite BF16 numbers: the code is the upper half of FP32's")

# %% [markdown]
# Two corners break the pattern.
#
# - **Exponent field 0.** The implicit 1 becomes a 0: *subnormal* numbers, in even steps down to
#   zero.
# - **Exponent field all ones.** IEEE formats keep it for infinity and NaN ("not a number"). E4M3
#   keeps only its last code for NaN; FP4 keeps none.

# %%
print("format     smallest normal  smallest  largest  step at 1  infinity  NaN")
for name in SHOWN[:6]:
    fmt = get_format(name)
    print(
        f"{name:<10} {fmt.min_normal:>15.3g} {fmt.min_subnormal:>9.2g} {fmt.max:>8.5g}"
        f" {fmt.eps:>10.2g} {'yes' if fmt.has_inf else 'no':>9} {'yes' if fmt.has_nan else 'no':>4}"
    )

# %% [markdown]
# ### Flip the bits
#
# Type a number, change the format, click a bit. Try 1.001 in BF16; the largest number of each
# format and one more bit; code 1, the smallest subnormal.

# %%
figures.show_widget(
    BitExplorer(),
    alt="One button a bit, coloured by field; below it the value, how it comes about, and the "
    "numbers next to it.",
)

# %%
probe = BitExplorer("fp16", 65504)  # FP16's largest number
print(probe.text, end="\n\n")
probe.flip(5)  # the last exponent bit: now it is all ones
print(probe.text)
assert probe.reading.kind == "NaN"

# %% [markdown] tags=["exercise-text"]
# ### Exercise 01.1 · Decode a float
#
# *12 minutes, difficulty 2 of 5.* Read the number off the bits, for any number of exponent and
# mantissa bits. `code` is an int with 1 + `exponent_bits` + `mantissa_bits` bits; return a Python
# float (`math.inf` and `math.nan` among them). The bias is 2^(exponent_bits - 1) - 1. A subnormal
# has the exponent of the smallest normal number.
#
# Stuck? `hint("01.1")`; `reveal("01.1")` shows the answer.


# %% tags=["exercise-01.1"]
def decode_float(code, exponent_bits, mantissa_bits, specials):
    """The number that the bit pattern `code` (an int) stands for, as a Python float.

    `specials` is "ieee" (exponent all ones: infinity or NaN), "nan_only" (all bits but
    the sign are ones: NaN; no infinity) or "none" (every code is a number).
    """
    ...


check("01.1", decode_float)

# %% [markdown]
# ## Everything that FP8 can say
#
# Eight bits make 256 codes, so the whole vocabulary fits in one picture. This is E4M3 without the
# sign bit, which only adds a minus.

# %%
e4m3 = all_values("fp8_e4m3")
assert int(torch.isnan(e4m3).sum()) == 2 and not torch.isinf(e4m3).any()
figures.show(
    code_table("fp8_e4m3"),
    alt="The 128 codes of E4M3 from 00 to 7F: 0, then steps of 0.00195, doubling every eight "
    "codes up to 448 at 7E; 7F is NaN.",
)

# %%
e5m2 = all_values("fp8_e5m2")
assert int(torch.isnan(e5m2).sum()) == 6 and int(torch.isinf(e5m2).sum()) == 2
figures.show(
    code_table("fp8_e5m2"),
    alt="The 128 codes of E5M2 from 00 to 7F: doubling every four codes up to 57344 at 7B; 7C is "
    "infinity, 7D to 7F are NaN.",
)

# %% [markdown]
# E5M2 doubles every 4 codes, E4M3 every 8. E5M2 reaches 128 times further and has half the
# numbers on the way. Training uses both: E4M3 for weights and activations, E5M2 for gradients,
# which span more powers of two.

# %% [markdown]
# Integers need no picture. In *two's complement* the first bit weighs -2^(bits-1) and the others
# what they always do, so the upper half of the codes is negative.

# %%
for name in ("int2", "int3", "int4"):
    print(name, [int(value) for value in all_values(name)])
assert decode(0b1000, "int4") == -8

# %% [markdown]
# With four bits there are 16 codes. Here are four ways to place 16 numbers, each scaled to
# reach 1.

# %%
fig, ax = figures.new(size=(7.2, 2.6))
FOUR_BITS = ["int4", "fp4_e2m1", "fp4_bnb", "nf4"]
for row, name in enumerate(FOUR_BITS):
    levels = all_values(name) / get_format(name).max
    ax.plot(levels, [row] * 16, "|", markersize=18, markeredgewidth=2)
    print(
        f"{name:<9} {len(levels.unique()):>2} different numbers, smallest positive "
        f"{levels[levels > 0].min():.3f}"
    )
ax.set(yticks=range(4), yticklabels=FOUR_BITS, xlabel="value / largest value", ylim=(3.5, -0.5))
figures.show(
    fig,
    alt="INT4 is evenly spaced and reaches below -1; FP4 and NF4 are dense near zero; NF4 has "
    "16 different numbers, one of them zero.",
)

# %% [markdown]
# INT4 has one number more below zero than above. FP4 spends two codes on zero,
# +0 and -0. NF4 is a *codebook*: a list of 16 numbers, chosen for weights. We build it below.

# %% [markdown]
# ## Where the numbers are

# %%
guess_half = predict(
    "What share of FP16's finite numbers lies between -1 and 1?",
    ["about 1 in 30000", "about a tenth", "about half"],
)

# %%
for name in ("fp16", "bf16", "fp8_e4m3"):
    numbers = all_values(name)
    numbers = numbers[torch.isfinite(numbers)]
    inside = float((numbers.abs() <= 1).float().mean())
    print(f"{name:<9} {inside:.0%} of its numbers lie in [-1, 1]")
    assert 0.4 < inside < 0.55
guess_half.compare("about half, in each of them", correct="about half")

# %% [markdown]
# Floats crowd around zero. On a linear axis, around zero only integers are even:

# %%
fig, ax = figures.new(size=(7.2, 2.6))
ROWS = ["int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"]
for row, name in enumerate(ROWS):
    values = all_values(name)
    values = values[values.abs() <= 8.5]
    ax.plot(values, torch.full_like(values, row), "|", markersize=18)
ax.set(yticks=range(4), yticklabels=ROWS, xlabel="number", ylim=(3.5, -0.5), xlim=(-8.6, 8.6))
figures.show(
    fig,
    alt="Numbers from -8 to 8. INT8: one at each integer. E4M3, E5M2 and FP4: crowded at zero, "
    "ever wider gaps outwards.",
)

# %% [markdown]
# On a logarithmic axis a float format becomes a **box**. Width: the exponent bits. Height: the
# mantissa bits. The slope at its left end is the subnormals.

# %%
fig, ax = figures.new()
for name in ("fp16", "fp8_e4m3", "fp8_e5m2", "int8"):
    values = all_values(name).double()
    octaves = values[(values > 0) & torch.isfinite(values)].log2().floor()
    where, count = octaves.unique(return_counts=True)
    ax.plot(where, count, drawstyle="steps-post", marker=".", label=name)
ax.set(yscale="log", xlabel="octave: numbers from $2^x$ to $2^{x+1}$", ylabel="numbers in it")
ax.set_yscale("log", base=2)
ax.legend()
figures.show(
    fig,
    alt="Numbers per octave. FP16: 1024 from 2^-14 to 2^15. E4M3: 8 from 2^-6 to 2^8. E5M2: 4 "
    "from 2^-14 to 2^15. INT8: 1 at 2^0, doubling to 64 at 2^6, then nothing.",
)

# %% [markdown]
# INT8 is a ramp: most of its numbers serve the top two octaves. With as many bits, E4M3 spreads
# them over 18.

# %% [markdown]
# ### The same picture as an error
#
# Half a step is the worst rounding error. Relative to the number it is constant inside the box.

# %%
fig, ax = figures.new()
middles = torch.exp2(torch.linspace(-22, 18, 40 * 64 + 1, dtype=torch.float64))
for name in ("fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"):
    error = (cast(middles, name).double() - middles).abs() / middles
    error = error.nan_to_num(nan=1.0, posinf=1.0).clamp(max=1.0)  # infinity: all is lost
    worst = error[:-1].reshape(40, 64).amax(dim=1)
    ax.plot(torch.arange(-22, 18), worst, drawstyle="steps-post", label=name)
ax.set(yscale="log", xlabel="magnitude, as a power of two", ylabel="worst relative error")
ax.set_yscale("log", base=2)
ax.legend(ncol=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1)
figures.show(
    fig,
    alt="Worst relative rounding error by magnitude: about 2^-11 for FP16 from 2^-14 to 2^16, "
    "2^-8 for BF16 throughout, E4M3 2^-4 and E5M2 2^-3 inside their ranges; INT8 falls from 1 "
    "to 2^-7 at 2^6.",
)

# %% [markdown]
# Read it as a rule: **inside its range a float is wrong by a fixed percentage, an integer by a
# fixed amount.** INT8 beats E4M3 on the largest numbers of a tensor, E4M3 beats INT8 on the small
# ones.

# %% [markdown]
# ## Rounding
#
# A number between two codes goes to the nearer one. Exactly halfway, IEEE 754 picks the even code.
# Does that matter?

# %%
guess_tie = predict(
    "The halves 0.5, 1.5, 2.5, ... are rounded. What is the mean error of always rounding up?",
    ["0", "0.25", "0.5"],
)

# %%
halves = torch.arange(0.5, 1000)
up = (torch.floor(halves + 0.5) - halves).mean().item()
even = (torch.round(halves) - halves).mean().item()
print(f"mean error, halves up: {up}, halves to even: {even}")
guess_tie.compare(up, correct="0.5")
assert (up, even) == (0.5, 0.0)

# %% [markdown]
# Ties are no rarity: a sum of two BF16 numbers often falls exactly halfway. Halves up would drift
# with every step of training. Truncation is worse still: it errs towards zero always.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 01.2 · Encode: round to nearest, ties to even
#
# *15 minutes, difficulty 3 of 5.* The way back: from a number to the bits of the nearest float.
# `x` is a Python float; return the code as an int. Work in *steps*, the gap between neighbours
# around `x`: all subnormals share the smallest. A mantissa that rounds up to 2 carries into the
# exponent.
#
# Stuck? `hint("01.2")`; `reveal("01.2")` shows the answer.


# %% tags=["exercise-01.2"]
def encode_float(x, exponent_bits, mantissa_bits, specials):
    """Code (an int) of the number nearest to x; a tie goes to the even code.

    x: a float, -0.0 and infinity among them, never NaN. `specials` as in decode_float.
    What rounds to more than the largest number becomes infinity where there is one
    ("ieee"), else the largest number.
    """
    ...


check("01.2", encode_float)

# %% [markdown]
# ### The real library beside it
#
# torch has these formats too. Its conversions are fast, so the experiments below use them; first,
# proof that they round as `labkit` does.

# %%
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def fast_cast(x, name):
    """cast(x, name) of float32, by torch's own arithmetic where it has the format."""
    if name.startswith("int"):
        return x.round().clamp(get_format(name).min, get_format(name).max)
    if name not in TORCH:
        return cast(x, name)
    limit = get_format(name).max if name == "fp8_e4m3" else math.inf
    return x.clamp(-limit, limit).to(TORCH[name]).float()


# %%
generator = torch.Generator().manual_seed(1)
wide = torch.randn(20_000, generator=generator) * torch.exp2(
    torch.randint(-30, 20, (20_000,), generator=generator).float()
)
for name in (*TORCH, "int8", "int4"):
    same = torch.equal(fast_cast(wide, name), cast(wide, name))
    print(f"{name:<9} the same on 20000 numbers from 2^-30 to 2^20: {same}")
    assert same

# %% [markdown]
# What E4M3 cannot hold may become its largest number or NaN: OFP8 allows both, and whoever writes
# the kernel decides. Saturating is usual; `clamp` makes sure of it.

# %%
for overflow in ("saturate", "nan"):
    print(f"500 in E4M3, overflow={overflow!r}:", cast(500.0, "fp8_e4m3", overflow=overflow))

# %% [markdown]
# ## Adding up

# %%
guess_sum = predict(
    "Add 1 to a BF16 sum, a hundred thousand times. What does it say in the end?",
    ["100000", "about 99800", "256", "infinity"],
)

# %%
total = torch.zeros((), dtype=torch.bfloat16)
one = torch.ones((), dtype=torch.bfloat16)
for _ in range(100_000):
    total = total + one
guess_sum.compare(f"{total.item():g}", correct="256")
assert total == 256

# %% [markdown]
# From 256 on BF16 counts in twos. 257 lies halfway between 256 and 258, the tie goes to the even
# code, and the sum stays where it is, for ever, in silence.

# %%
fig, ax = figures.new()
for name in ("fp16", "bf16", "fp8_e4m3", "fp8_e5m2"):
    sums = [0.0]
    while len(sums) < 5000 and (larger := cast(sums[-1] + 1, name)) != sums[-1]:
        sums.append(larger)
    ax.plot([*range(1, len(sums)), 1e5], [*sums[1:], sums[-1]], label=f"{name}: {sums[-1]:g}")
    assert sums[-1] == 2 ** (get_format(name).mantissa_bits + 1)
ax.plot([1, 1e5], [1, 1e5], "--", color="#777777", label="right")
ax.set(xscale="log", yscale="log", xlabel="ones added", ylabel="sum")
ax.legend()
figures.show(
    fig,
    alt="A running sum of ones against their number: stuck at 8 in E5M2, 16 in E4M3, 256 in BF16, "
    "2048 in FP16.",
)

# %% [markdown]
# Every sum of ones stops at 2^(mantissa bits + 1). So hardware multiplies in few bits and adds in
# many: a tensor core takes BF16 or FP8 operands and keeps an FP32 *accumulator*. torch's own sum
# does the same:

# %%
inside = torch.ones(100_000, dtype=torch.bfloat16).sum()
print(f"torch's sum of 100000 BF16 ones: {inside.item():g}")
print(f"the BF16 number nearest to 100000: {cast(100_000.0, 'bf16'):g}")
assert inside.item() == cast(100_000.0, "bf16")

# %% [markdown]
# ## A model to try it on
#
# The bundled language model, a held-out text, and perplexity: how many tokens the model hesitates
# between, on average. Lower is better.

# %%
from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity
from labkit.models import load
from labkit.models.apply import map_weights
from labkit.models.walking import capture_inputs, linear_layers, weight_matrix

model, tokenizer = load()
layers = linear_layers(model)
text = load_corpus("stdlib-prose", "heldout").text


def quality(candidate, tokens=1024):
    """Perplexity over the first tokens of held-out prose."""
    return perplexity(candidate, tokenizer, text, context=256, max_tokens=tokens).value


# %% tags=["nbval-ignore-output"]
before = quality(model)
print(f"{len(layers)} linear layers, perplexity {before:.1f}")

# %%
assert 1 < before < model.config.vocab_size / 10
weights = {name: weight_matrix(layer).detach().float() for name, layer in layers.items()}
all_weights = torch.cat([w.flatten() for w in weights.values()])
small = (all_weights.abs() < 0.5).float().mean()
print("99 % of the weights are below 0.5:", bool(small > 0.99))
print("BF16 holds each of them exactly:", torch.equal(fast_cast(all_weights, "bf16"), all_weights))

# %% [markdown]
# ### A real dot product, in three accumulators
#
# One layer's real inputs times 64 rows of its weights, added up term by term. The products are
# exact to FP32; only the running sum is rounded.

# %%
name = max(weights, key=lambda n: weights[n].shape[1])
token_ids = torch.tensor(tokenizer(text[:9000], verbose=False)["input_ids"][:512]).reshape(4, 128)
inputs = capture_inputs(model, token_ids[:1, :64], [name])[name]
rows = weights[name][:64]
right = inputs.double() @ rows.double().T
noise = {}
for accumulator in ("bf16", "fp16", "fp32"):
    running = torch.zeros(right.shape, device=rows.device)
    for k in range(rows.shape[1]):
        step = running + inputs[:, k : k + 1] * rows[:, k]
        running = step if accumulator == "fp32" else fast_cast(step, accumulator)
    noise[accumulator] = sqnr_db(right, running.double())

# %% tags=["nbval-ignore-output"]
for accumulator, decibels in noise.items():
    print(f"{accumulator} accumulator: signal to noise {decibels:.0f} dB")

# %%
assert noise["fp32"] > noise["fp16"] + 20 > noise["bf16"] + 30
print("FP32 beats FP16 by over 20 dB, FP16 beats BF16 by over 10 dB")

# %% [markdown]
# 20 dB is a factor of 10 in amplitude, about 3.3 bits. Longer sums lose more.

# %% [markdown]
# ## Overflow: where FP16 falls silent
#
# RMSNorm, the normalisation in every Llama layer, squares its input. FP16 ends at 65504, so
# anything above 255 has an infinite square.

# %%
x = torch.full((4,), 300.0)
for name in ("fp16", "bf16"):
    square = cast(x * x, name)
    mean = cast(square.mean(), name)
    normed = cast(x / mean.sqrt(), name)
    print(f"{name}: square {square[0]:g}, normalised {normed[0]:g}")
assert cast(300.0 * 300.0, "fp16") == math.inf

# %% [markdown]
# In FP16 the layer says 0 where it should say 1. No error, no warning. Implementations therefore
# square in FP32, whatever the model's dtype.

# %% [markdown]
# ## Underflow: why FP16 needs loss scaling
#
# Gradients are small. Below 2^-25 FP16 rounds to zero. Let us look at real ones: how much of the
# gradient that flows into each linear layer's output would each format lose?

# %%
gradients = []


def keep_gradient(module, inputs, outputs):
    outputs.register_hook(lambda gradient: gradients.append(gradient.detach().flatten()))


token_ids = token_ids.to(model.device)
handles = [layer.register_forward_hook(keep_gradient) for layer in layers.values()]
model(input_ids=token_ids, labels=token_ids, use_cache=False).loss.backward()
for handle in handles:
    handle.remove()
model.zero_grad()
gradient = torch.cat(gradients)
gradient = gradient[gradient != 0]

# %%
guess_lost = predict(
    "FP16, BF16, E4M3: which of them turns most of these gradients into zero?",
    ["none", "E4M3", "E4M3 and FP16", "all three"],
)


# %%
def lost(values, name):
    """Share of the numbers that the format turns into zero."""
    return float((fast_cast(values, name) == 0).float().mean())


shares = {name: lost(gradient, name) for name in TORCH}
most = [name for name in ("fp16", "bf16", "fp8_e4m3") if shares[name] > 0.5]
answers = {(): "none", ("fp8_e4m3",): "E4M3", ("fp16", "fp8_e4m3"): "E4M3 and FP16"}
guess_lost.compare(" and ".join(most) or "none", correct=answers[tuple(most)])

# %% tags=["nbval-ignore-output"]
fig, ax = figures.new()
ax.hist(gradient.abs().log2().cpu(), bins=100, range=(-42, -2), density=True, color="#999999")
for name, colour in zip(TORCH, figures.PALETTE, strict=False):
    floor = math.log2(get_format(name).min_subnormal) - 1  # half of it rounds to zero
    ax.axvline(max(floor, -42), color=colour, label=f"{name}: {shares[name]:.1%} become 0")
ax.set(xlabel="size of a gradient, as a power of two", ylabel="density", xlim=(-42, -2))
ax.legend(loc="upper left", fontsize=8.5)
figures.show(
    fig,
    alt="Histogram of gradient sizes in powers of two, with the floors of FP16 at -25, E4M3 at "
    "-10, E5M2 at -17; BF16's floor is far to the left.",
)

# %%
assert shares["fp8_e4m3"] > shares["fp8_e5m2"] > shares["fp16"] > shares["bf16"]
assert shares["bf16"] < 1e-3
print("lost, from most to least: E4M3, E5M2, FP16, BF16 (next to nothing)")

# %% [markdown]
# Gradients are linear in the loss. Multiply the loss by a large power of two and all of them move
# right, out of the silence; divide before the weights are updated. That is **loss scaling**. BF16
# has FP32's range and needs none.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 01.3 · Choose a loss scale
#
# *6 minutes, difficulty 1 of 5.* Find the largest power of two that no gradient overflows under.
# `gradients` is a float32 tensor, `largest` the format's largest number; return a Python float.
# Why a power of two? It changes exponents alone, so scaling back is exact.
#
# Stuck? `hint("01.3")`; `reveal("01.3")` shows the answer.


# %% tags=["exercise-01.3"]
def loss_scale(gradients, largest):
    """The largest power of two, a Python float, that keeps every |gradient| * scale
    within `largest`, the largest number of the format.

    gradients: float32 tensor. All zero: the scale is 1.
    """
    ...


check("01.3", loss_scale)

# %%
scaled_shares = {}
for name in ("fp16", "fp8_e5m2", "fp8_e4m3"):
    factor = power_of_two_scale(gradient, get_format(name).max)
    assert torch.isfinite(fast_cast(gradient * factor, name)).all()
    scaled_shares[name] = lost(gradient * factor, name)
assert scaled_shares["fp16"] < shares["fp16"] / 10
assert scaled_shares["fp8_e4m3"] > 10 * scaled_shares["fp8_e5m2"]
print("scaled, FP16 loses less than a tenth of what it lost; E4M3 over ten times as much as E5M2")

# %% [markdown]
# Scaled as far as they go, the smallest gradients still fall below E4M3's 18 octaves, and hardly
# any below E5M2's 32. That is why FP8 training takes E5M2 for the backward pass.

# %% [markdown]
# ## Cast the whole model
#
# Every weight of every linear layer, in every format; first bare, then divided by one scale per
# matrix so that the largest weight meets the format's largest number.

# %%
guess_bare = predict(
    "Weights cast bare, without a scale. Which formats ruin the model?",
    ["FP8 and everything below", "the integers and FP4", "only the 4-bit formats"],
)


# %%
def scaled_cast(x, name, block=None):
    """x through the format, one scale for each `block` numbers (None: one for all)."""
    fmt = get_format(name)
    parts = x.reshape(-1, block or x.numel())
    scale = (parts.abs().amax(dim=1, keepdim=True) / fmt.max).clamp(min=1e-30)
    return (fast_cast(parts / scale, name) * scale).reshape(x.shape)


TRIED = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "nf4", "fp4_e2m1", "int4"]
bare = {n: quality(map_weights(model, lambda _, w, n=n: fast_cast(w, n))) for n in TRIED}
scaled = {n: quality(map_weights(model, lambda _, w, n=n: scaled_cast(w, n))) for n in TRIED}


# %%
def bars(ax, groups, labels):
    """Grouped bars of perplexity, and the line of the model as it was."""
    for shift, (label, results) in enumerate(groups.items()):
        heights = [min(q, 1e5) if math.isfinite(q) else 1e5 for q in results]
        ax.bar(np.arange(len(labels)) + 0.38 * shift - 0.19, heights, 0.36, label=label)
    ax.axhline(before, color="black", linestyle="--", linewidth=1, label="FP32")
    ax.set(yscale="log", ylabel="perplexity (cut at 100000)", ylim=(before / 1.5, 2e5))
    ax.set_xticks(range(len(labels)), labels, fontsize=8.5)
    ax.grid(axis="x", visible=False)
    ax.legend()


# %% tags=["nbval-ignore-output"]
fig, ax = figures.new(size=(7.2, 3.4))
bars(ax, {"bare": bare.values(), "one scale a matrix": scaled.values()}, TRIED)
figures.show(
    fig,
    alt="Perplexity with weights in eight formats, bare and scaled: 16-bit and FP8 formats stay "
    "near FP32, INT8 and 4 bits need a scale, and 4 bits remain worse with one scale a matrix.",
)

# %%
assert abs(bare["bf16"] / before - 1) < 0.05 and abs(bare["fp16"] / before - 1) < 0.05
assert bare["int8"] > 2 * before and scaled["int8"] < 1.2 * before
assert scaled["int8"] < scaled["int4"] and scaled["nf4"] < bare["nf4"]
ruined = [name for name in TRIED if bare[name] > 2 * before]
print("bare, these more than double the perplexity:", ruined)
right = "the integers and FP4" if "fp8_e4m3" not in ruined else "FP8 and everything below"
guess_bare.compare(", ".join(ruined), correct=right)

# %% [markdown]
# FP8 carries its own exponent: weights of any ordinary size land in its range. An integer has
# none. Somebody must remember the scale for it, and that is the rest of this course. Bare NF4 lives
# by luck: its levels next to zero, near 0.09, are about as large as a weight.

# %% [markdown]
# ### Now the activations
#
# A *forward pre-hook* runs before a layer and may replace its input. With one on every linear
# layer, weights stay exact and only activations are cast.


# %%
@contextlib.contextmanager
def activations_through(change):
    """Inside the block, every input of a decoder's linear layer goes through `change`."""
    handles = [
        layer.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
        for layer in layers.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def quality_through(change, tokens=1024):
    with activations_through(change):
        return quality(model, tokens)


# %%
guess_activations = predict(
    "8 bits, one scale a tensor, activations only: which keeps the model better?",
    ["INT8", "E4M3", "E5M2"],
)

# %%
ACTIVATIONS = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "fp4_e2m1", "int4"]
bare_activations = [quality_through(lambda x, n=n: fast_cast(x, n)) for n in ACTIVATIONS]
scaled_activations = [quality_through(lambda x, n=n: scaled_cast(x, n)) for n in ACTIVATIONS]

# %%
fig, ax = figures.new(size=(7.2, 3.4))
bars(ax, {"bare": bare_activations, "one scale a tensor": scaled_activations}, ACTIVATIONS)
figures.show(
    fig,
    alt="Perplexity with activations in seven formats: 16-bit and FP8 formats near FP32 without "
    "a scale, INT8 only with one, INT4 and FP4 far off either way.",
)

# %% [markdown]
# Perplexity hardly tells the 8-bit formats apart. A finer ruler: how far the predicted
# distributions move, as the Kullback-Leibler divergence (KL) from the FP32 model's.


# %%
@torch.inference_mode()
def logits():
    return model(input_ids=token_ids, use_cache=False).logits


exact_logits, shift_of = logits(), {}
for label, name in (("INT8", "int8"), ("E4M3", "fp8_e4m3"), ("E5M2", "fp8_e5m2")):
    with activations_through(lambda x, n=name: scaled_cast(x, n)):
        shift_of[label] = logit_kl(exact_logits, logits())

# %% tags=["nbval-ignore-output"]
guess_activations.compare(
    ", ".join(f"{label} {kl:.1e} nats" for label, kl in shift_of.items()),
    correct=min(shift_of, key=shift_of.get),
)

# %%
after = dict(zip(ACTIVATIONS, scaled_activations, strict=True))
assert max(after["int8"], after["fp8_e4m3"], after["fp8_e5m2"]) < 1.2 * before
assert after["int4"] > 1.05 * before and shift_of["E5M2"] > 1.5 * shift_of["E4M3"]
print("8 bits do little harm, 4 bits much; E5M2 moves the output more than E4M3")

# %% [markdown]
# ## Sixteen levels, well placed
#
# Weights are nearly normally distributed: many small ones, few large ones. Even levels waste codes
# on the tails. NF4 (QLoRA) puts its levels at *quantiles*: values that cut the distribution into
# equal shares.

# %%
blocks = all_weights[: all_weights.numel() // 64 * 64].reshape(-1, 64)
unit = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten().cpu()
fig, axes = figures.new(2, 1, size=(7.2, 4.4), sharex=True)
for ax, name in zip(axes, ("int4", "nf4"), strict=True):
    ax.hist(unit, bins=200, density=True, color="#BBBBBB")
    levels = all_values(name) / get_format(name).max
    ax.vlines(levels[levels >= -1], 0, 1.4, color=figures.PALETTE[1], linewidth=1.2)
    ax.set(ylabel="density", title=f"real weights over the levels of {name}")
axes[1].set_xlabel("weight / largest of its block of 64")
figures.show(
    fig,
    alt="Histogram of the model's weights, each block of 64 scaled to 1: a bell around zero. "
    "INT4's levels are even; NF4's crowd under the bell.",
)

# %%
guess_use = predict(
    "NF4 means to use each code alike. How far apart are the most and the least used code?",
    ["under 3 times", "3 to 10 times", "over 10 times"],
)


# %%
def code_use(name):
    """How often each level is the nearest one, as shares, from lowest to highest level."""
    levels = (all_values(name) / get_format(name).max).unique()
    middles = (levels[1:] + levels[:-1]) / 2
    return levels, torch.bincount(torch.bucketize(unit, middles), minlength=len(levels)) / len(unit)


fig, axes = figures.new(1, 2, size=(7.2, 2.8), sharey=True)
for ax, name in zip(axes, ("int4", "nf4"), strict=True):
    levels, share = code_use(name)
    ax.bar(range(len(share)), share, color=figures.PALETTE[0])
    ax.axhline(1 / 16, color=figures.PALETTE[1], linestyle="--")
    ax.set(title=name, xlabel="level, from lowest to highest", xticks=[0, 5, 10, 15])
axes[0].set_ylabel("share of weights")
figures.show(
    fig,
    alt="Share of weights at each of 16 levels. INT4: a peak in the middle, the ends nearly "
    "unused. NF4: much flatter, around one sixteenth.",
)

# %%
spread = {}
for name in ("int4", "nf4"):
    _, share = code_use(name)
    used = share[share > 0]
    spread[name] = -float((used * used.log2()).sum())
    print(f"{name}: the codes carry {spread[name]:.1f} of 4 bits of information")
_, share = code_use("nf4")
ratio = float(share.max() / share.min())
band = "under 3 times" if ratio < 3 else "3 to 10 times" if ratio < 10 else "over 10 times"
guess_use.compare(band, correct=band)
assert spread["nf4"] > spread["int4"] + 0.1

# %% [markdown]
# Equal use is a guide, not a law: least error is another aim, and scaling by the largest weight
# makes the ends special (Yoshida 2023, below). NF4's error on these weights is lower than INT4's
# all the same:

# %%
flat = blocks.flatten()
errors = {name: mse(flat, scaled_cast(flat, name, 64)) for name in ("nf4", "int4")}
print("blocks of 64, NF4 has a smaller squared error than INT4:", errors["nf4"] < errors["int4"])
assert errors["nf4"] < errors["int4"]

# %% [markdown] tags=["exercise-text"]
# ### Exercise 01.4 · Build NF4 from quantiles
#
# *10 minutes, difficulty 3 of 5.* Build the levels for any number of bits. `torch.special.ndtri`
# turns a probability into a quantile of the normal distribution; probability 0.5 gives 0,
# probability 1 infinity, so the outermost one is `offset`, a little less. QLoRA takes
# 1 - (1/32 + 1/30) / 2 for 4 bits. Zero must be exact, so the two sides cannot be alike.
#
# Stuck? `hint("01.4")`; `reveal("01.4")` shows the answer.


# %% tags=["exercise-01.4"]
def normal_float(bits, offset):
    """The 2**bits levels of NormalFloat in ascending order, a float32 tensor.

    2**(bits - 1) levels above zero, one fewer below it, and zero itself. On each side
    they are quantiles of the normal distribution (torch.special.ndtri) at evenly spaced
    probabilities from 0.5 to `offset`, 0.5 being the zero. All divided by the largest.
    """
    ...


check("01.4", normal_float)

# %% [markdown]
# The real library beside it: bitsandbytes ships these 16 numbers as a table.

# %%
import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its CPU kernels are optional
from bitsandbytes.functional import get_4bit_type

theirs = get_4bit_type("nf4", device="cpu")
ours = torch.tensor(CODEBOOKS["nf4"].values)
print([round(level, 3) for level in ours.tolist()])
print("the same as bitsandbytes, bit for bit:", torch.equal(ours, theirs))
assert torch.equal(ours, theirs)

# %% [markdown]
# ### A scale of its own kind: MX
#
# FP4 E2M1 knows 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. MXFP4 gives every 32 of them a
# scale in E8M0: eight exponent bits and nothing else, a power of two. That is 4 + 8/32 = 4.25 bits
# a number.

# %%
block = all_weights[:32]
mx = quantize_mxfp4(block)
scale = decode(int(mx.scale_codes[0]), "e8m0")
print(
    f"{mx.bits_per_weight} bits a number; the scale is a power of two:", math.log2(scale) % 1 == 0
)
elements = decode(mx.codes, "fp4_e2m1")
print("elements:", elements[:8].tolist())
assert torch.equal(mx.dequantize(), elements * scale)

# %% [markdown]
# ## Memory: what the bits are for
#
# A 7-billion-parameter model at 16 bits takes 14 GB, which is 13 GiB: makers count 10^9 bytes, the
# driver 2^30. Beside the weights lies the **KV cache**: a key and a value, for every token, in
# every layer.

# %%
guess_fit = predict(
    "Llama-2-70B with 4-bit weights, 4096 tokens: what is the smallest GPU that holds it?",
    ["24 GB", "48 GB", "80 GB"],
)

# %%
SIZES = {"3B": "llama-3.2-3b", "7B": "llama-2-7b", "13B": "llama-2-13b", "70B": "llama-2-70b"}
needs = {
    f"{size}, {bits:g} bits": estimate(MODEL_SHAPES[name], bits, context=4096, batch=4)
    for size, name in SIZES.items()
    for bits in (16, 8, 4.125)
}
figures.show(
    memory_figure(needs),
    alt="Memory of models from 3 to 70 billion weights at 16, 8 and 4.125 bits with the KV cache "
    "of four sequences of 4096 tokens. Only at 4 bits does 70B fit on one 48 GB GPU.",
)

# %%
one = estimate(MODEL_SHAPES["llama-2-70b"], 4.125, context=4096)
guess_fit.compare(f"{gib(one.total):.0f} GiB", correct="48 GB")
assert 24 < gib(one.total) < 44

# %% [markdown]
# At 7B the cache (Llama 2: 32 KV heads) is a large part; at 70B it is a small one, although the
# model is ten times larger. Grouped-query attention: 8 KV heads serve 64 query heads.

# %%
fig, ax = figures.new()
contexts = [2**k for k in range(10, 18)]
for name in ("llama-2-7b", "llama-3-8b"):
    cache = [gib(kv_cache_bytes(MODEL_SHAPES[name], context, batch=8)) for context in contexts]
    ax.plot(contexts, cache, marker="o", label=f"{name}: cache of 8 sequences")
for bits, style in ((16, "--"), (4.125, ":")):
    size = gib(weight_bytes(MODEL_SHAPES["llama-3-8b"], bits))
    ax.axhline(size, color="black", linestyle=style, label=f"llama-3-8b: weights, {bits:g} bits")
ax.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="memory (GiB)")
ax.set_xscale("log", base=2)
ax.legend(fontsize=8.5)
figures.show(
    fig,
    alt="KV cache of eight sequences against context: Llama-3-8B's passes its own 4-bit weights "
    "near 4096 tokens; Llama-2-7B's is four times as large.",
)

# %% [markdown]
# Quantize the weights to 4 bits, and at long contexts the cache is what fills the GPU. Chapter 10
# quantizes that too.

# %% [markdown]
# ### Is the formula right? Measure
#
# Run the bundled model with a cache, and count the bytes that are really there.

# %%
with torch.inference_mode():
    cache = model(input_ids=token_ids[:2, :100], use_cache=True).past_key_values
measured = cache_bytes(cache)
formula = kv_cache_bytes(shape_of(model.config), context=100, batch=2, bits=32)
print("bytes of the cache as the formula says:", measured == formula)
assert measured == formula

# %%
figures.show_widget(
    MemoryExplorer(),
    alt="Menus for model, weight bits and cache bits, sliders for context and sequences; a bar of "
    "the memory needed, and the GPUs that have it.",
)

# %%
calculator = MemoryExplorer("llama-2-70b")
calculator.bits.value, calculator.context.value = 4.125, 4096
print(calculator.text)
assert "L40S" in calculator.fitting and "RTX 4090" not in calculator.fitting

# %% [markdown] tags=["exercise-text"]
# ### Exercise 01.5 · Weights and KV cache in GiB
#
# *8 minutes, difficulty 2 of 5.* Two numbers decide whether a model fits. `shape` describes a
# published model; `weight_bits` may be a fraction, such as 4.125 (scales included). Return two
# floats in GiB: weights, cache. What does one token leave behind in one layer?
#
# Stuck? `hint("01.5")`; `reveal("01.5")` shows the answer.


# %% tags=["exercise-01.5"]
def memory_gib(shape, weight_bits, kv_bits, context, batch):
    """GiB of a model's weights and of its KV cache, as two floats (weights, cache).

    shape: has .parameters, .layers, .hidden, .heads, .kv_heads, .head_dim.
    The cache holds a key and a value of every token, for `batch` sequences of `context`
    tokens, each number at `kv_bits`. 1 GiB = 2**30 bytes.
    """
    ...


check("01.5", memory_gib)

# %% [markdown]
# ## What breaks this
#
# Every format has a place to stand. Move the numbers and see who falls. Each activation is
# multiplied by 2^x before the cast and divided after it: nothing changes but what the format
# sees.

# %%
guess_falls = predict(
    "Activations 2^16 times larger than they are. Who still works?",
    ["only BF16", "BF16 and FP16", "BF16 and E5M2", "all of them"],
)

# %%
SHIFTS = list(range(-24, 25, 4))
MOVED = ["bf16", "fp16", "fp8_e5m2", "fp8_e4m3", "int8"]
moved = {
    name: [
        quality_through(lambda x, n=name, c=2.0**shift: fast_cast(x * c, n) / c, tokens=512)
        for shift in SHIFTS
    ]
    for name in MOVED
}
CEILING = 100 * before  # NaN, too, is drawn there
moved = {n: [q if q < CEILING else CEILING for q in line] for n, line in moved.items()}

# %% tags=["nbval-ignore-output"]
fig, ax = figures.new(size=(7.2, 3.6))
for width, (name, line) in zip((6, 4.5, 3, 2, 1.5), moved.items(), strict=True):
    ax.plot(SHIFTS, line, linewidth=width, marker=".", markersize=width + 5, label=name)
ax.set(yscale="log", xlabel="activations shifted by this power of two")
ax.set_ylabel("perplexity (cut at 100 times FP32's)")
ax.legend(ncol=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1)
figures.show(
    fig,
    alt="Perplexity against a shift of the activations by powers of two. BF16 is flat. FP16, "
    "E5M2 and E4M3 are bathtubs, ever narrower; INT8 is a notch.",
)

# %%
base = moved["bf16"][SHIFTS.index(0)]
width = {n: sum(q < 1.5 * base for q in line) for n, line in moved.items()}
assert width["bf16"] == len(SHIFTS) > width["fp16"] > width["fp8_e4m3"] > width["int8"]
print("widest to narrowest:", ", ".join(sorted(width, key=width.get, reverse=True)))
stands = [n for n in MOVED if moved[n][SHIFTS.index(16)] < 2 * base]
guess_falls.compare(", ".join(stands), correct="only BF16")
assert stands == ["bf16"]

# %% [markdown]
# Right wall: overflow. Left wall: underflow. The floor's height is the mantissa, its width the
# exponent. INT8 is a notch: one fixed scale hardly suits all layers at once, so each tensor needs
# its own, and it must be right. One outlier is enough to make it wrong.

# %% [markdown]
# ### One weight against a matrix
#
# Make a single weight 1000 times the largest, let it set the scale, and look at what is left of all
# others.

# %%
victim = next(iter(weights.values())).clone()
healthy = {n: sqnr_db(victim, scaled_cast(victim, n)) for n in ("int8", "nf4", "fp8_e4m3", "bf16")}
spoilt = victim.clone()
spoilt[0, 0] = 1000 * victim.abs().max()
rest = torch.ones_like(victim, dtype=torch.bool)
rest[0, 0] = False
for name, decibels in healthy.items():
    left = sqnr_db(victim[rest], scaled_cast(spoilt, name)[rest])
    print(f"{name:<9} {decibels:>3.0f} dB, with the outlier {left:>3.0f} dB")
    assert left < 1 if name in ("int8", "nf4") else left > 15

# %% [markdown]
# INT8 and NF4 round everything else to zero: 0 dB, all signal gone. The floats hardly notice.
# Chapter 04 meets such outliers in real models.

# %% [markdown]
# ## The whole model, before and after
#
# Each row is one weight matrix, each column a format, brightness the signal left above the rounding
# noise. Under each name: what became of the model, which had the perplexity in the title.

# %%
RECIPES = {
    "bf16": lambda w: fast_cast(w, "bf16"),
    "int8": lambda w: scaled_cast(w, "int8"),
    "e4m3": lambda w: scaled_cast(w, "fp8_e4m3"),
    "e5m2": lambda w: scaled_cast(w, "fp8_e5m2"),
    "nf4/64": lambda w: scaled_cast(w, "nf4", 64),
    "int4/64": lambda w: scaled_cast(w, "int4", 64),
    "mxfp4": lambda w: quantize_mxfp4(w).dequantize(),
    "int4": lambda w: scaled_cast(w, "int4"),
    "int3/64": lambda w: scaled_cast(w, "int3", 64),
    "int2/64": lambda w: scaled_cast(w, "int2", 64),
}
signal = [[min(sqnr_db(w, f(w)), 99) for f in RECIPES.values()] for w in weights.values()]
final = {n: quality(map_weights(model, lambda _, w, f=f: f(w))) for n, f in RECIPES.items()}

# %% tags=["nbval-ignore-output"]
labels = [f"{name}\n{q:.1f}" if q < 1e4 else f"{name}\nruined" for name, q in final.items()]
numbers = [next(part for part in name.split(".") if part.isdigit()) for name in weights]
rows = [f"block {n}" if n not in numbers[:i] else "" for i, n in enumerate(numbers)]
fig = model_map(torch.tensor(signal), labels, rows)
fig.axes[0].set_title(f"before: perplexity {before:.1f} in FP32")
figures.show(
    fig,
    alt="Signal-to-noise ratio of every weight matrix in ten formats, brightest for BF16, falling "
    "over INT8 and FP8 to 4 bits and 2 bits, with the perplexity of each model below.",
)

# %%
average = dict(zip(RECIPES, np.mean(signal, axis=0), strict=True))
order = ["bf16", "int8", "nf4/64", "int4/64", "int3/64", "int2/64"]
assert order == sorted(order, key=average.get, reverse=True)
assert average["e4m3"] > average["e5m2"] + 4  # a bit of mantissa is 6 dB
assert final["nf4/64"] < final["int4"] < final["int2/64"]
print("each mantissa bit is worth about 6 dB:", abs(average["e4m3"] - average["e5m2"] - 6) < 1)

# %% [markdown]
# With the same four bits, `int4` with one scale a matrix and `int4/64` with one scale every 64
# weights are different models. How to choose that scale is [chapter 02](02_scale_zero_point.ipynb);
# how many weights should share one, [chapter 03](03_per_channel.ipynb).

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you open it.

# %% [markdown] tags=["interview"]
# **Why does BF16 train where FP16 needs loss scaling?**
#
# <details><summary>A model answer</summary>
#
# Range, not precision. FP16 has 5 exponent bits: it overflows at 65504 and rounds everything below
# 2^-25 to zero. Activation gradients are often smaller than that, so their signal vanishes
# silently. Multiplying the loss by a power of two shifts all gradients up by the same factor,
# exactly; they are divided again before the update, and the factor is lowered whenever an infinity
# shows up. BF16 has FP32's 8 exponent bits, so neither end is met in practice. It pays with
# precision, 8 significant bits against 11, which training tolerates because weights are updated in
# an FP32 master copy and sums are accumulated in FP32.
#
# </details>

# %% [markdown] tags=["interview"]
# **FP8 has two layouts. Why E4M3 in the forward pass and E5M2 in the backward pass?**
#
# <details><summary>A model answer</summary>
#
# Weights and activations, once scaled, fill few octaves, and errors there go straight into the
# result: they want the third mantissa bit (relative error at most 1/16 instead of 1/8, about 6 dB).
# E4M3 also gives up infinity and all but one NaN to reach 448. Gradients span many more octaves;
# what falls below the range becomes zero. E5M2 has 5 exponent bits, FP16's range, and keeps
# infinity, so overflow can be noticed and the scale reduced. Both need a scale per tensor or per
# block in practice. Recent recipes with a scale per small block use E4M3 throughout, because the
# scale now does the exponent's work.
#
# </details>

# %% [markdown] tags=["interview"]
# **What is NF4, and why not simply INT4?**
#
# <details><summary>A model answer</summary>
#
# A codebook of 16 numbers for blocks of weights divided by their largest magnitude. Weights are
# close to normal, so evenly spaced levels spend codes on tails where hardly any weight lies. NF4
# takes quantiles of the normal distribution: levels dense near zero, each used about equally often.
# Zero is exact, so the sides differ: eight levels above, seven below. Price: levels are not
# proportional to integers, so there is no integer arithmetic; weights are looked up and multiplied
# in BF16. It suits storage (QLoRA: frozen 4-bit weights, BF16 compute), not INT4 tensor cores. And
# equal use is not least error: with scaling by the maximum, better tables exist.
#
# </details>

# %% [markdown] tags=["interview"]
# **A kernel multiplies in FP8 or BF16. Why does it accumulate in FP32?**
#
# <details><summary>A model answer</summary>
#
# Adding a small number to a large sum only registers if it exceeds half a step at the sum's size.
# With m mantissa bits a sum of ones stops at 2^(m+1): 256 in BF16, 16 in E4M3. A dot product over
# thousands of terms meets exactly that: late terms vanish, and the rounding errors of each step add
# up. The product of two 8-bit-significand numbers fits FP32 exactly, so FP32 accumulation leaves
# only one visible rounding, at the end. INT8 is the same story: products need 16 bits, sums 32.
# Where hardware accumulates in fewer bits, kernels move partial sums to an FP32 register every 128
# terms or so.
#
# </details>

# %% [markdown] tags=["interview"]
# **Both take 8 bits. When would you choose INT8, when E4M3?**
#
# <details><summary>A model answer</summary>
#
# INT8 errs by a fixed amount, E4M3 by a fixed percentage. If values fill their range evenly, or are
# clipped well, INT8 has the smaller error: 7 bits of magnitude against 4 significant bits. If a
# tensor has a few large values among many small ones, as activations of language models do, one
# INT8 scale rounds the small ones away, while E4M3 keeps them, its exponent being a scale for every
# number. So: weights per channel, either; activations with outliers, E4M3, or INT8 with a cure such
# as SmoothQuant. And ask the hardware: FP8 needs Hopper, Ada or later; INT8 runs nearly everywhere,
# CPUs included.
#
# </details>

# %% [markdown] tags=["interview"]
# **Estimate the memory to serve Llama-2-70B in 4 bits to 16 users with 4096 tokens each.**
#
# <details><summary>A model answer</summary>
#
# Weights: 69 · 10^9 · about 4.125 bits (a 16-bit scale every 128) is 35.6 GB, 33 GiB. Cache for one
# token: 2 (key, value) · 80 layers · 8 KV heads · 128 · 2 bytes = 320 KiB. Times 4096 tokens is
# 1.25 GiB a user, 20 GiB for 16. Activations and the CUDA context: one to two GiB. Together about
# 55 GiB: an 80 GB card, or two of 48. Note what I did not use: the 64 query heads. Without grouped
# queries the cache would be 160 GiB. If memory is short, an FP8 cache saves 10 GiB, with less harm
# than 3-bit weights.
#
# </details>

# %% [markdown] tags=["interview"]
# **What are subnormals, and does a quantizer need them?**
#
# <details><summary>A model answer</summary>
#
# Numbers whose exponent field is 0: the implicit leading 1 becomes 0 and the exponent stays at its
# minimum. They fill the gap between zero and the smallest normal number with even steps, so that x
# - y is 0 only if x equals y. In FP32 nobody misses them, and some hardware flushes them to zero.
# In FP8 they are a large part of the format: without subnormals E4M3 would stop at 2^-6 instead of
# 2^-9, three octaves of eighteen, and FP4 E2M1 would lose 0.5, one of its seven positive numbers.
# So yes, and a decoder that forgets them is wrong near zero, where most weights are.
#
# </details>

# %% [markdown]
# ## What to read
#
# - Goldberg, [What Every Computer Scientist Should Know About Floating-Point
#   Arithmetic](https://docs.oracle.com/cd/E19957-01/806-3568/ncg_goldberg.html), 1991
# - Micikevicius et al., [Mixed Precision Training](https://arxiv.org/abs/1710.03740), 2017
# - Kalamkar et al., [A Study of BFLOAT16](https://arxiv.org/abs/1905.12322), 2019
# - Micikevicius et al., [FP8 Formats for Deep Learning](https://arxiv.org/abs/2209.05433), 2022

# %% [markdown]
# - van Baalen et al., [FP8 versus INT8](https://arxiv.org/abs/2303.17951), 2023
# - Rouhani et al., [Microscaling Data Formats](https://arxiv.org/abs/2310.10537), 2023
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314), 2023: NF4
# - Yoshida, [NF4 Isn't Information Theoretically Optimal](https://arxiv.org/abs/2306.06965), 2023
# - Ainslie et al., [GQA](https://arxiv.org/abs/2305.13245), 2023
