# %% [markdown]
# # 03 · Per channel, per group
#
# **How many numbers should share a scale?**
#
# **You will be able to**
# - quantize a weight per tensor, per output channel and per group, and say which scale each
#   element meets
# - measure the damage in MSE, SQNR and cosine, and say what each of them cannot see
# - count the bits per weight that the metadata really costs
# - say which scales leave the sum of a matrix product, and which do not
# - choose between weight-only and weight-and-activation, and between PTQ and QAT
#
# **Time:** 90 minutes · **Before this:** [02_scale_zero_point](02_scale_zero_point.ipynb)

# %%
import copy
import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import quants as gguf_quants

from labkit.core import metrics
from labkit.core.affine import choose_qparams, fake_quantize
from labkit.core.errors import GroupSizeError
from labkit.core.granularity import block_range, expand, scale_shape
from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course.prediction import predict

# %%
from labkit.course.widgets_03_granularity import GranularityPicker, scheme_for, sharings_for
from labkit.course.widgets_03_pictures import (
    by_block,
    middle_block,
    model_maps,
    plain_log,
    sharing_maps,
    weight_with_maxima,
)
from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.tasks import task_accuracy
from labkit.models import load
from labkit.models.apply import quantize_model
from labkit.models.walking import capture_inputs, linear_layers, weight_matrix
from labkit.quantize import rtn

# %% [markdown]
# ## One scale for everybody
#
# In chapter 02 one scale served a whole tensor, and the largest weight anywhere set the step for
# all of them. Is that fair? Take every linear layer of the model and ask how much its rows differ.

# %%
model, tokenizer = load()
weights = {
    name: weight_matrix(layer).detach().float().cpu()
    for name, layer in linear_layers(model).items()
}
sharings = sharings_for(weights)
print(len(weights), "matrices,", f"{sum(w.numel() for w in weights.values()) / 1e6:.1f} M weights")

# %% [markdown]
# The *loudness* of a row: its largest |w|. Row j of a weight [out, in] makes output j, and is
# called an **output channel**. We take the matrix whose loudest row stands out most from its
# middle row.


# %%
def spread(weight):
    """How far the loudest row stands above the middle one."""
    loudness = weight.abs().amax(dim=1)
    return float(loudness.max() / loudness.median())


loud_name = max(weights, key=lambda name: spread(weights[name]))
loud = weights[loud_name]
print(loud_name, list(loud.shape), f"loudest row = {spread(loud):.1f} x the middle row")

# %%
figures.show(
    weight_with_maxima(loud, loud_name),
    alt=f"Heat map of {loud_name} with the largest weight of every column above it and of every "
    f"row beside it: the loudest row reaches {spread(loud):.1f} times the middle row.",
)

# %% [markdown]
# At 4 bits a symmetric grid has 15 codes, -7 to 7. The loudest row needs all of them. What is left
# for the quietest row, when the whole matrix shares one scale?

# %%
guess_codes = predict(
    "How many of the 15 codes does the quietest row use, with one scale for the matrix?",
    ["13 to 15", "8 to 12", "fewer than 8"],
)

# %%
quiet = int(loud.abs().amax(dim=1).argmin())
shared = rtn.quantize(loud, QuantScheme(4, granularity="tensor"))
own = rtn.quantize(loud, QuantScheme(4, granularity="channel"))
used = len(shared.codes[quiet].unique())
guess_codes.compare(
    f"{used} of 15",
    correct="fewer than 8" if used < 8 else "8 to 12" if used < 13 else "13 to 15",
)

# %%
fig, axes = figures.new(2, 1, size=(6.4, 4.4), sharex=True)
edge = float(loud[quiet].abs().max()) * 1.6
for ax, quantized, whose in zip(axes, (shared, own), ("the matrix", "the row"), strict=True):
    step = float(quantized.scale[quiet % len(quantized.scale), 0])
    ax.hist(loud[quiet].tolist(), bins=61, color=figures.PALETTE[5])
    figures.levels(ax, [step * code for code in range(-7, 8) if abs(step * code) < edge])
    codes = len(quantized.codes[quiet].unique())
    ax.set(ylabel="weights", title=f"one scale for {whose}: {codes} codes in use")
axes[1].set(xlim=(-edge, edge), xlabel="weights of the quietest row, and its 4-bit grid")
figures.show(
    fig,
    alt=f"The quietest row over two grids: {used} levels of the matrix's grid fall on its weights, "
    f"and {len(own.codes[quiet].unique())} levels of its own.",
)

# %% [markdown]
# A weight below half a step becomes 0. Look at the share of zeros: with one scale per matrix the
# quiet half of the rows loses its small weights.

# %%
rows = loud.abs().amax(dim=1)
quiet_half = rows <= rows.median()
zeros = {q.scheme.granularity: float((q.codes[quiet_half] == 0).float().mean())
         for q in (shared, own)}  # fmt: skip
print({granularity: f"{share:.0%} zeros" for granularity, share in zeros.items()})
assert zeros["tensor"] > zeros["channel"]

# %% [markdown]
# ## Four ways to share
#
# | granularity | who shares one scale | scales of [out, in] |
# |---|---|---|
# | tensor | everybody | 1 |
# | channel | a row: the weights of one output | [out, 1] |
# | group | g neighbours in a row | [out, in / g] |
# | token | a row of *activations* [tokens, in] | [tokens, 1] |

# %%
figures.show(
    sharing_maps(),
    alt="Four small matrices, coloured by who shares a scale: all of it, each row of a weight, "
    "each run of four neighbours in a row, and each token of an activation.",
)

# %% [markdown]
# `labkit` calls this the *shape of scales*. Everything else, range, scale and zero-point, is
# chapter 02 once for each block.

# %%
for sharing in ("tensor", "channel", "group 32"):
    shape = scale_shape(loud.shape, scheme_for(sharing, bits=4))
    print(f"{sharing:9} scales {list(shape)}, one for {loud.numel() // math.prod(shape)} weights")

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.1 · A scale for each output channel
#
# *6 minutes, difficulty 1 of 5.* `weight` is float [out, in]. Return the symmetric scales, one for
# each output channel, as float [out, 1]: the largest |w| of the row lands on the largest code,
# `2**(bits - 1) - 1`. A row of zeros gets scale 1.
#
# Square matrices are among the tests: an axis taken for the other has the right shape there, and
# the wrong numbers. Stuck? `hint("03.1")`; `reveal("03.1")` shows the answer.


# %% tags=["exercise-03.1"]
def channel_scales(weight, bits):
    """Symmetric scales of `weight` [out, in], one for each output channel: [out, 1]."""
    ...


check("03.1", channel_scales)

# %% [markdown]
# **The real thing beside it.** PyTorch quantizes per channel when it is given the axis, 0 for
# [out, in]. Same scales in, same numbers out.

# %%
fine = rtn.quantize(loud, QuantScheme(4, granularity="channel"), scale_dtype=torch.float32)
scale = fine.scale[:, 0]
theirs = torch.fake_quantize_per_channel_affine(
    loud, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -7, 7
)
steps_apart = ((theirs - fine.dequantize()) / fine.scale).abs().round()
# torch multiplies by 1 / scale where we divide, so a tie may fall the other way.
differ = float((steps_apart > 0).float().mean())
print("more than 99.9 % of the codes are torch's, the others one apart:", differ < 1e-3)
assert steps_apart.max() <= 1 and differ < 1e-3

# %% [markdown]
# ## How wrong is it?
#
# Four numbers say how far a tensor is from its original x.
#
# - **MSE**: the mean of (x - x̂)², in the unit of x, squared
# - **SQNR**: 10 log10(sum x² / sum (x - x̂)²), in decibels, without a unit
# - **cosine** of the angle between x and x̂
# - **max**: the largest |x - x̂|

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.2 · Signal to quantization noise
#
# *6 minutes, difficulty 2 of 5.* Both arguments are float tensors of one shape. Return one number:
# 10 log10 of the power of `reference` over the power of the error, all elements together.
# Infinity where there is no error, for two tensors of zeros too.
#
# Power is a sum of squares. The mean belongs to the signal. `hint("03.2")`, `reveal("03.2")`.


# %% tags=["exercise-03.2"]
def sqnr_db(reference, approximation):
    """10 log10(power of the signal / power of the error), over all elements; inf if exact."""
    ...


check("03.2", sqnr_db)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.3 · Cosine similarity
#
# *4 minutes, difficulty 1 of 5.* Return the cosine of the angle between all of `x` and all of `y`,
# both float tensors of one shape: one number, -1 to 1. Two tensors of zeros have 1, a tensor of
# zeros and another one 0. `torch.cosine_similarity` is not at hand. `hint("03.3")`,
# `reveal("03.3")`.


# %% tags=["exercise-03.3"]
def cosine(x, y):
    """Cosine of the angle between all of x and all of y; two zeros: 1, one zero: 0."""
    ...


check("03.3", cosine)

# %% [markdown]
# No metric sees everything. Four kinds of damage to the same matrix; find the metric that is blind
# to each.

# %%
typical = loud.std()
flipped = torch.where(loud.abs() == loud.abs().max(), -loud, loud)
damaged = {
    "every weight x 1.1": loud * 1.1,
    "every weight + 0.1 std": loud + 0.1 * typical,
    "largest weight flipped": flipped,
    "4 bits, one scale": shared.dequantize(),
    "4 bits, scale per row": own.dequantize(),
}
seen = {}
print(f"{'':24}{'MSE':>9}{'SQNR dB':>9}{'cosine':>9}{'max/std':>9}")
for damage, y in damaged.items():
    worst = metrics.max_abs_error(loud, y) / float(typical)
    seen[damage] = metrics.mse(loud, y), metrics.sqnr_db(loud, y), metrics.cosine(loud, y), worst
    print("{:24}{:9.1e}{:9.1f}{:9.4f}{:9.2f}".format(damage, *seen[damage]))

# %% [markdown]
# The cosine calls a wrong scale perfect. SQNR calls it as bad as a shift of the same power. The
# sign of the most important weight is hardly seen by any average; only the maximum notices. And
# MSE has a unit, which changes from layer to layer. From here on we use SQNR.

# %%
factor, shift = seen["every weight x 1.1"], seen["every weight + 0.1 std"]
print("the cosine is blind to a factor:", factor[2] > 0.999999)
print("SQNR of x 1.1 is 20 dB:", abs(factor[1] - 20) < 0.01)
print("shift and factor look alike to SQNR:", abs(shift[1] - factor[1]) < 1)
one, four_bits = seen["largest weight flipped"], seen["4 bits, scale per row"]
print("a flipped weight is no loss beside 4 bits:", one[1] > four_bits[1] and one[3] > four_bits[3])

# %% [markdown]
# One more bit halves the step. What is that worth?

# %%
guess_bit = predict("One more bit per weight adds how many dB?", ["about 3", "about 6", "about 10"])

# %%
widths = range(3, 9)
curves = {
    sharing: [
        metrics.sqnr_db(loud, rtn.quantize(loud, scheme_for(sharing, bits)).dequantize())
        for bits in widths
    ]
    for sharing in ("tensor", "channel", "group 32")
}
fig, ax = figures.new()
for (sharing, decibels), marker in zip(curves.items(), "osD", strict=True):
    ax.plot(widths, decibels, marker=marker, label=sharing)
ax.set(xlabel="bits of a code", ylabel="SQNR (dB)", title=loud_name)
ax.legend()
figures.show(
    fig,
    alt="Three parallel lines: SQNR rises by about 6 dB with every bit, and the line per row lies "
    f"{curves['channel'][1] - curves['tensor'][1]:.0f} dB above the line per tensor.",
)

# %%
per_bit = (curves["channel"][-1] - curves["channel"][1]) / 4
guess_bit.compare(f"{per_bit:.1f} dB from 4 to 8 bits", correct="about 6")
print(f"half the step is a quarter of the power: 10 log10(4) = {10 * math.log10(4):.2f} dB")
assert 5.5 < per_bit < 7

# %% [markdown]
# The lines are parallel. A finer sharing buys a fixed number of dB, at any width, so it can be
# exchanged for bits at 6 dB each. Reading it sideways: the distance between the lines, divided by
# 6, is how many bits a better sharing is worth.

# %% [markdown]
# ## Groups
#
# A row still shares one scale among all its weights. Where along the matrix does the loudness
# vary: from row to row, or from column to column? For every kind of layer, compare scales per row
# and (as an experiment) per column with one scale.


# %%
def gained(weight, bits=4):
    """dB gained over one scale: by a scale per row, per column, per group of 32."""
    base = metrics.sqnr_db(weight, rtn.quantize(weight, scheme_for("tensor", bits)).dequantize())
    row, group = (
        metrics.sqnr_db(weight, rtn.quantize(weight, scheme_for(s, bits)).dequantize())
        for s in ("channel", "group 32")
    )
    turned = rtn.quantize(weight.T.contiguous(), scheme_for("channel", bits)).dequantize()
    return row - base, metrics.sqnr_db(weight, turned.T.contiguous()) - base, group - base


gains = {name: gained(weight) for name, weight in weights.items()}

# %%
fig, ax = figures.new(size=(6.4, 3.6))
for which, label, marker in ((0, "per row", "o"), (1, "per column", "s"), (2, "groups of 32", "D")):
    kinds, _, table = by_block({name: gain[which] for name, gain in gains.items()})
    mean = np.nanmean(table, axis=1)
    ax.plot(mean, range(len(kinds)), marker, markersize=8, label=label)
ax.set_yticks(range(len(kinds)), labels=[kind.split(".")[-1] for kind in kinds])
ax.set(xlabel="dB gained over one scale per matrix, 4 bits", xlim=(0, None))
ax.invert_yaxis()
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
figures.show(
    fig,
    alt="Decibels gained over one scale per matrix, for every kind of layer: by a scale per row, "
    "per column, and per group of 32, which gains most everywhere.",
)

# %%
finest_wins = sum(gain[2] > gain[0] for gain in gains.values())
print(f"groups of 32 beat rows in {finest_wins} of {len(gains)} matrices")
columns_win = sorted({name.split(".")[-1] for name, gain in gains.items() if gain[1] > gain[0] + 1})
print("columns beat rows by more than 1 dB in", columns_win or "none")
assert finest_wins > 0.9 * len(gains)

# %% [markdown]
# In a Llama's feed-forward, a scale per row helps `up_proj` and a scale per column would help
# `down_proj`. Why these? Row i of `up_proj` and column i of `down_proj` belong to the *same
# neuron*. Loud neurons are loud on both sides.


# %%
def feed_forwards(network):
    """(up, down) weights of each gated feed-forward: up [ffn, hidden], down [hidden, ffn]."""
    gated = [m for m in network.modules() if hasattr(m, "up_proj") and hasattr(m, "down_proj")]
    return [(m.up_proj.weight.data, m.down_proj.weight.data) for m in gated]


# %%
pairs = feed_forwards(model)
if pairs:
    up, down = (weight.cpu() for weight in pairs[len(pairs) // 2])
    fig, ax = figures.new(size=(4.8, 3.6))
    ax.plot(up.norm(dim=1), down.norm(dim=0), ".", markersize=4)
    ax.set(xlabel="norm of its row of up_proj", ylabel="norm of its column of down_proj")
    ax.set(title="one dot, one neuron (middle block)")
    figures.show(
        fig,
        alt="A dot for each neuron of the middle block: the larger its row of up_proj, the larger "
        "its column of down_proj.",
    )

# %%
alike = [
    float(torch.corrcoef(torch.stack([up.norm(dim=1).log(), down.norm(dim=0).log()]))[0, 1])
    for up, down in pairs
]
print("correlation of the two sides, block by block:", [f"{r:.1f}" for r in alike])
assert not alike or np.mean(alike) > 0.2

# %% [markdown]
# A scale per column is not for sale, as we shall see under "Where a scale may leave the sum". The
# next best thing is a scale for every *group* of g neighbours in a row: a loud column then spoils
# g weights of each row, not all of them.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.4 · Groups along a row
#
# *12 minutes, difficulty 3 of 5.* Quantize `weight` [out, in] symmetrically, with a scale for each
# group of `group_size` neighbours in a row. Return `(codes, scale)`: integers [out, in] in
# -qmax .. qmax with qmax = `2**(bits - 1) - 1`, rounded to nearest, and float
# [out, in / group_size]. A group of zeros gets scale 1.
#
# Where `group_size` does not divide the row, raise `ValueError`: a ragged group has no place in
# the file. `hint("03.4")`, `reveal("03.4")`.


# %% tags=["exercise-03.4"]
def quantize_groups(weight, bits, group_size):
    """Return (codes int8 [out, in], scale [out, in / group_size]); symmetric, nearest."""
    ...


check("03.4", quantize_groups)

# %% [markdown]
# `labkit` refuses a ragged group too, and says which sizes fit.

# %%
try:
    rtn.quantize(torch.ones(2, 768), QuantScheme(4, granularity="group", group_size=100))
except GroupSizeError as error:
    print(error)

# %% [markdown]
# **The real thing beside it.** GGUF's `Q8_0`, the 8-bit type of llama.cpp, is nothing but groups
# of 32 with a float16 scale in front of 32 signed bytes. We read its scales and codes.

# %%
blocks = gguf_quants.quantize(loud.numpy(), GGMLQuantizationType.Q8_0).reshape(-1, 34)
their_scale = torch.from_numpy(blocks[:, :2].copy().view(np.float16))
their_codes = torch.from_numpy(blocks[:, 2:].copy().view(np.int8))
ours = rtn.quantize(loud, scheme_for("group 32", 8))
same_scale = bool((ours.scale.reshape(-1, 1) == their_scale).all())
apart = (ours.codes.reshape(-1, 32).int() - their_codes.int()).abs()
print("the scales are the same, bit for bit:", same_scale)
print("codes at most one apart:", int(apart.max()) <= 1, "· most are equal:",
      bool((apart == 0).float().mean() > 0.9))  # fmt: skip
assert same_scale and apart.max() <= 1 and (apart == 0).float().mean() > 0.9

# %% [markdown]
# The codes that differ are near ties: we divide by the scale that is stored, ggml by the one
# before it was rounded to float16. Ours is the nearest code for the scale that the reader has.

# %% [markdown]
# ## What the scales cost
#
# A scale is a float16, 16 bits, and an asymmetric block keeps a zero-point beside it. Shared by a
# group of 32 that is half a bit for every weight. "4-bit" is the width of a code; what you pay for
# is the *true* bits per weight.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.5 · True bits per weight
#
# *8 minutes, difficulty 2 of 5.* A weight [rows, columns] is stored as codes of `bits` bits, a
# 16-bit scale for each block, and, unless `symmetric`, a zero-point of `bits` bits for each block.
# `granularity` is "tensor", "channel" or "group"; `group_size` is None unless it is "group".
# Return the bits stored per weight. `hint("03.5")`, `reveal("03.5")`.


# %% tags=["exercise-03.5"]
def bits_per_weight(rows, columns, bits, granularity, group_size, symmetric):
    """Bits stored per weight: codes, 16-bit scales, zero-points of `bits` bits."""
    ...


check("03.5", bits_per_weight)

# %%
weight = torch.zeros(4096, 4096)
for bits, symmetric, sharing in [
    (8, True, "channel"), (4, True, "channel"), (4, True, "group 128"), (4, False, "group 128"),
    (4, True, "group 32"), (4, False, "group 32"), (3, False, "group 16"),
]:  # fmt: skip
    stored = rtn.quantize(weight, scheme_for(sharing, bits, symmetric))
    print(f"{stored.scheme!s:24} {stored.bits_per_weight:.3f} bits per weight")

# %% [markdown]
# What ships is in the same range. The types of GGUF say how many bytes a block takes; the second
# level of the K types (scales of scales) is chapter 07.

# %%
shipped = {}
for name in ("Q8_0", "Q6_K", "Q5_0", "Q4_1", "Q4_0", "Q4_K", "Q3_K", "Q2_K"):
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    shipped[name] = size * 8 / block
    print(f"{name}: {block:3} weights in {size:3} bytes, {shipped[name]:.4g} bits per weight")
assert shipped["Q8_0"] == ours.bits_per_weight

# %% [markdown]
# Two ways to spend five bits: 5-bit codes with a scale per row, or 4-bit codes with a scale for
# every 16 weights.

# %%
guess_five = predict(
    "Five bits per weight, less error: which?",
    ["5-bit codes, scale per row", "4-bit codes, groups of 16", "within 1 dB of each other"],
)

# %% [markdown]
# Measure all of them, on the middle block of the model: the power of the error of all its matrices
# together, against the bits of all of them together.

# %%
some = middle_block(weights)
signal = sum(float(w.square().sum()) for w in some.values())


def price_and_quality(sharing, bits):
    """(true bits per weight, SQNR in dB) of the block under one scheme."""
    stored = {name: rtn.quantize(w, scheme_for(sharing, bits)) for name, w in some.items()}
    noise = sum(float((some[n] - q.dequantize()).square().sum()) for n, q in stored.items())
    size = sum(q.bits_per_weight * q.codes.numel() for q in stored.values())
    return size / sum(w.numel() for w in some.values()), 10 * math.log10(signal / noise)


pareto = {s: {b: price_and_quality(s, b) for b in range(2, 8)} for s in sharings}

# %%
fig, ax = figures.new(size=(6.8, 4.0))
for (sharing, points), marker in zip(pareto.items(), "osD^vP", strict=False):
    prices, decibels = zip(*points.values(), strict=True)
    ax.plot(prices, decibels, marker=marker, linewidth=1, label=sharing)
ax.set(xlabel="true bits per weight", ylabel="SQNR of the block's weights (dB)", xlim=(1.8, 6.2))
ax.set(ylim=(0, pareto["channel"][6][1]))
ax.legend(title="one scale per")
figures.show(
    fig,
    alt="SQNR against true bits per weight, a line for every granularity; at 4 bits: "
    + ", ".join(f"{s} {points[4][1]:.0f} dB" for s, points in pareto.items())
    + ".",
)

# %%
wide, narrow = pareto["channel"][5], pareto["group 16"][4]
difference = wide[1] - narrow[1]
guess_five.compare(
    f"5-bit rows {wide[1]:.1f} dB at {wide[0]:.2f} bits, "
    f"4-bit groups of 16 {narrow[1]:.1f} dB at {narrow[0]:.2f} bits",
    correct=guess_five.options[2 if abs(difference) < 1 else 0 if difference > 0 else 1],
)
assert pareto["tensor"][4][1] < pareto["channel"][4][1] < pareto["group 16"][4][1]

# %% [markdown]
# Scales are worth their bits as long as they buy more than 6 dB per bit; then another bit of code
# is the better purchase. Where that happens depends on how the loudness is spread. What does each
# halving of the group buy here, at 4 bits?

# %%
for coarse, fine in pairwise(sharings[1:]):
    (bits_a, db_a), (bits_b, db_b) = pareto[coarse][4], pareto[fine][4]
    rate = (db_b - db_a) / (bits_b - bits_a)
    print(f"{coarse:>9} to {fine:9} {bits_b - bits_a:5.3f} bits buy {db_b - db_a:.1f} dB", end=", ")
    print(f"{rate:4.1f} dB a bit")

# %% [markdown]
# Choose a matrix, who shares, and the bits. Left: the step that each weight meets. Middle: the
# error it makes (the colours mean the same for every sharing). Right: what that costs and buys.
# Can you find a matrix in which stripes run *down*?

# %%
picker = GranularityPicker(some)
picker.layer.value = max(some, key=lambda name: spread(some[name]))
picker.sharing.value = "channel"
figures.show_widget(
    picker,
    alt="A menu of matrices, a slider for who shares a scale, a slider for bits; a picture of the "
    "steps, of the errors, and of SQNR against bits per weight.",
)

# %%
found = {}
for sharing in picker.sharing.options:
    picker.sharing.value = sharing
    found[sharing] = picker.measured.sqnr_db
picker.sharing.value = "channel"
print(picker.text)
print("best of the slider:", max(found, key=found.get))
assert found["channel"] > found["tensor"]

# %% [markdown]
# ## Where a scale may leave the sum
#
# With codes X, W and scales a (per token t), b (per output j):
#
# $$y_{tj} = \sum_i a_t X_{ti} \; b_j W_{ji} = a_t\, b_j \sum_i X_{ti} W_{ji}$$
#
# Both scales are the same for every i: they leave the sum, which is over *integers*. A row of any
# length costs one float multiplication.

# %% [markdown]
# A scale per *input* channel, c_i, changes with the index that is summed: it must stay inside, and
# every product becomes a float. Hence weights per output channel and activations per token, never
# the other way round. A group is between: its scale leaves the group's sum, and there are in / g
# such sums.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 03.6 · Where the scale leaves the sum
#
# *12 minutes, difficulty 3 of 5.* `x_codes` int8 [tokens, in] with `x_scale` [tokens, 1], and
# `w_codes` int8 [out, in] with `w_scale` [out, groups], groups being runs of neighbours.
# Return float y = x @ w.T, [tokens, out]. Sum integer products (in int32) within a group; apply
# each scale outside of its sum.
#
# With one group this is a scale per output channel. One test has large terms that cancel: sums
# taken over floats lose them. `hint("03.6")`, `reveal("03.6")`.


# %% tags=["exercise-03.6"]
def integer_linear(x_codes, x_scale, w_codes, w_scale):
    """y = x @ w.T [tokens, out] from int8 codes; x_scale [tokens, 1], w_scale [out, groups]."""
    ...


check("03.6", integer_linear)

# %% [markdown]
# On the real thing: the input of one layer while the model reads, 8-bit codes per token, 8-bit
# weights per output channel.

# %%
prose = load_corpus("stdlib-prose", "calibration").text
ids = torch.tensor(tokenizer(prose[:40_000], verbose=False)["input_ids"])
ids = ids[: 16 * 128].reshape(16, 128)
layer_name = list(some)[-1]
inputs = {k: v.cpu() for k, v in capture_inputs(model, ids, some).items()}
x = inputs[layer_name]
print(layer_name.split(".")[-1], "reads", list(x.shape))

# %%
x_int = rtn.quantize(x, QuantScheme(8, granularity="token"), scale_dtype=torch.float32)
w_int = rtn.quantize(some[layer_name], scheme_for("channel", 8), scale_dtype=torch.float32)
sums = x_int.codes.to(torch.int32) @ w_int.codes.to(torch.int32).T
y_int = sums * x_int.scale * w_int.scale.T
y_float = x_int.dequantize() @ w_int.dequantize().T
print("integers, scaled once, equal the dequantized product:",
      metrics.sqnr_db(y_float, y_int) > 100)  # fmt: skip
exact = metrics.sqnr_db(x @ some[layer_name].T, y_int)
print("and are near the product of the originals:", exact > 15)
assert metrics.sqnr_db(y_float, y_int) > 100 and exact > 15

# %%
long = 4096
sizes = [long, 128, 64, 32, 16, 1]
fig, ax = figures.new(size=(6.4, 3.0))
ax.bar(range(6), [long // g for g in sizes], color=[figures.PALETTE[i] for i in (2, 0, 0, 0, 0, 1)])
ax.set_yscale("log", base=2)
ax.set_xticks(range(6), labels=["output\nchannel", "128", "64", "32", "16", "input\nchannel"])
ax.set(xlabel="who shares a weight scale (a row of 4096)", ylabel="float multiplications")
ax.set(title="to scale one output")
for place, g in enumerate(sizes):
    ax.text(place, long // g * 1.1, str(long // g), ha="center")
figures.show(
    fig,
    alt="Float multiplications to scale one output of 4096 terms: 1 per output channel, 32 for "
    "groups of 128, 256 for groups of 16, and 4096 per input channel.",
)

# %% [markdown]
# **What hardware wants.** An integer matrix unit adds products along a tile of i (16, 32 or 64
# terms) into int32. A group that is a multiple of the tile costs a float multiply-add per tile; a
# scale per output channel costs one at the very end. Hence 32 to 128 in practice, and never 5.

# %% [markdown]
# ## Weights alone, or activations too
#
# | | stored | multiplied as | saves |
# |---|---|---|---|
# | weight-only (W4A16) | int4 codes | float, after dequantizing | memory and its traffic |
# | both (W8A8) | int8 codes | integers | that, and arithmetic |
#
# Weights are known in advance. Activations are new with each token. How much do tokens differ,
# and how much do the features (the input channels)?

# %% tags=["nbval-ignore-output"]
ratios = {}
for name, seen_x in inputs.items():
    by_token, by_feature = seen_x.abs().amax(dim=1), seen_x.abs().amax(dim=0)
    ratios[name] = [float(m.max() / m.median()) for m in (by_token, by_feature)]
    kind = name.split(".")[-1]
    token, feature = ratios[name]
    print(f"{kind:10} loudest over middle: token {token:4.1f}, feature {feature:4.1f}")
assert max(feature for _, feature in ratios.values()) > 1.5

# %% [markdown]
# Loud *features* are input channels: their scales cannot leave the sum. In large models a few are
# very loud; that is the outlier problem of chapter 04. Here we measure the two granularities that
# can be had: one scale for all tokens, or one for each token.


# %%
def with_rounded_inputs(network, scheme):
    """A copy that rounds what flows into each linear layer, with the range of that very input."""

    def rounded(layer, args):
        x = args[0]
        lo, hi = block_range(x, scheme)
        scale, zero_point = choose_qparams(lo, hi, scheme.bits, scheme.symmetric)
        scale, zero_point = (expand(v, scheme, x.shape) for v in (scale, zero_point))
        return fake_quantize(x, scale, zero_point, scheme.qmin, scheme.qmax), *args[1:]

    changed = copy.deepcopy(network)
    for layer in linear_layers(changed).values():
        layer.register_forward_pre_hook(rounded)
    return changed


# %%
heldout = load_corpus("stdlib-prose", "heldout").text


def ppl(network):
    """Perplexity on held-out prose, 2048 tokens at a context of 256."""
    return perplexity(network, tokenizer, heldout, context=256, max_tokens=2048).value


def rounded_weights(network, sharing, bits):
    """A copy whose weights went through their codes and back."""
    return quantize_model(network, scheme_for(sharing, bits))[0]


guess_side = predict(
    "4 bits for weights (per channel) or for activations (per token): which hurts more?",
    ["weights", "activations"],
)

# %% tags=["nbval-ignore-output"]
w8, w4 = (rounded_weights(model, "channel", bits) for bits in (8, 4))
per_token, per_tensor = QuantScheme(8, granularity="token"), QuantScheme(8, granularity="tensor")
a4 = QuantScheme(4, granularity="token")
sides = {
    "W32A32": ppl(model),
    "W4A32": ppl(w4),
    "W32A4 per token": ppl(with_rounded_inputs(model, a4)),
    "W8A8 per tensor": ppl(with_rounded_inputs(w8, per_tensor)),
    "W8A8 per token": ppl(with_rounded_inputs(w8, per_token)),
    "W4A4 per token": ppl(with_rounded_inputs(w4, a4)),
}
for name, value in sides.items():
    print(f"{name:16} perplexity {value:8.2f}")
worse = "weights" if sides["W4A32"] > sides["W32A4 per token"] else "activations"
guess_side.compare(f"{sides['W4A32']:.2f} against {sides['W32A4 per token']:.2f}", correct=worse)

# %%
base = sides["W32A32"]
print("W8A8 per token within 5 % of full precision:", sides["W8A8 per token"] < 1.05 * base)
print("W4A4 is worse than W4 alone:", sides["W4A4 per token"] > sides["W4A32"])
assert sides["W8A8 per token"] < 1.05 * base and sides["W4A4 per token"] > sides["W4A32"]

# %% [markdown]
# ## The whole model
#
# Perplexity is what the error does in the end. All linear layers at 8, 4, 3 and 2 bits, round to
# nearest, five ways to share.

# %%
guess_ppl = predict(
    "At 3 bits: perplexity with one scale per tensor over that with groups of 32?",
    ["under 1.5 times", "1.5 to 3 times", "over 3 times"],
)

# %% tags=["nbval-ignore-output"]
shares = [sharing for sharing in sharings if sharing != "group 64"]
sweep, true_bits = {}, {}
print(f"{'':10}" + "".join(f"{bits} bits   " for bits in (8, 4, 3, 2)))
for sharing in shares:
    for bits in (8, 4, 3, 2):
        changed, reports = quantize_model(model, scheme_for(sharing, bits))
        sweep[sharing, bits] = ppl(changed)
        stored = [report.quantized for report in reports]
        size = sum(q.bits_per_weight * q.codes.numel() for q in stored)
        true_bits[sharing, bits] = size / sum(q.codes.numel() for q in stored)
    print(f"{sharing:10}" + "".join(f"{sweep[sharing, b]:7.2f}  " for b in (8, 4, 3, 2)))
print(f"{'float32':10}{base:7.2f}")

# %% tags=["nbval-ignore-output"]
ratio = sweep["tensor", 3] / sweep["group 32", 3]
guess_ppl.compare(
    f"{ratio:.2f} times", correct=guess_ppl.options[0 if ratio < 1.5 else 1 if ratio <= 3 else 2]
)
assert ratio > 1

# %%
print("8 bits per channel costs less than 2 %:", sweep["channel", 8] < 1.02 * base)
print("3 bits: tensor worse than channel:", sweep["tensor", 3] > sweep["channel", 3])
print("2 bits: channel worse than groups of 16:", sweep["channel", 2] > sweep["group 16", 2])
assert sweep["channel", 8] < 1.02 * base
assert sweep["tensor", 3] > sweep["channel", 3] and sweep["channel", 2] > sweep["group 16", 2]

# %%
fig, ax = figures.new(size=(6.6, 3.8))
for bits, marker in zip((2, 3, 4, 8), "vDso", strict=True):
    ax.plot([sweep[s, bits] for s in shares[::-1]], marker=marker, label=f"{bits} bits")
ax.axhline(base, color="black", linewidth=1, linestyle=":", label="float32")
plain_log(ax, "perplexity (log)")
names = [s.removeprefix("group ").replace("channel", "row") for s in shares[::-1]]
ax.set_xticks(range(len(names)), labels=names)
ax.set(xlabel="weights that share a scale", ylim=(base * 0.9, base * 12))
ax.legend()
figures.show(
    fig,
    alt="Perplexity against the number of weights that share a scale, a line for each width: the "
    "8-bit line is flat, and the fewer the bits the steeper the line climbs.",
)

# %%
fig, ax = figures.new(size=(6.6, 3.8))
for sharing, marker in zip(shares, "osD^v", strict=False):
    points = [(true_bits[sharing, bits], sweep[sharing, bits]) for bits in (2, 3, 4, 8)]
    ax.plot(*zip(*points, strict=True), marker=marker, linewidth=1, label=sharing)
ax.axhline(base, color="black", linewidth=1, linestyle=":")
plain_log(ax, "perplexity (log)")
ax.set(xlabel="true bits per weight", xlim=(1.8, 5.4), ylim=(base * 0.9, base * 12))
ax.legend(title="one scale per")
figures.show(
    fig,
    alt="Perplexity against true bits per weight, a line for every granularity: nearly level from "
    "eight bits to four, and steep below three bits whatever the granularity.",
)

# %% [markdown]
# Every matrix of the model, before and after: 4 bits with one scale per tensor, then with a scale
# per row, then with groups of 32. Bright is good. Which kind of layer stays dark with rows, and
# why?

# %%
panels = []
for sharing in ("tensor", "channel", "group 32"):
    _, reports = quantize_model(model, scheme_for(sharing, 4))
    panels.append((f"4 bits per {sharing}", {r.name: r.sqnr_db for r in reports}))
figures.show(
    model_maps(panels, label="SQNR (dB)"),
    alt="SQNR of every matrix, kinds by blocks, three times: dark and uneven with one scale per "
    "tensor, brighter with a scale per row, evenly bright with groups of 32.",
)
worst = [min(values.values()) for _, values in panels]
print("the worst matrix gains with each step:", worst == sorted(worst))
assert worst == sorted(worst)

# %% [markdown]
# Perplexity is an average over easy words. Exact answers are less forgiving: the same three
# models on the four tasks, at 3 bits.

# %% tags=["nbval-ignore-output"]
TASKS = ("facts", "doctest", "recall", "repl")
answers = {}
for label, network in {
    "float32": model,
    **{f"3 bits, {s}": rounded_weights(model, s, 3) for s in ("tensor", "channel", "group 32")},
}.items():
    answers[label] = [task_accuracy(network, tokenizer, task, 40).accuracy for task in TASKS]
    print(
        f"{label:17}"
        + "  ".join(f"{t} {a:4.0%}" for t, a in zip(TASKS, answers[label], strict=True))
    )

# %%
mean = {label: sum(values) / 4 for label, values in answers.items()}
print("groups answer at least as well as one scale:",
      mean["3 bits, group 32"] >= mean["3 bits, tensor"] - 0.05)  # fmt: skip
assert mean["3 bits, group 32"] >= mean["3 bits, tensor"] - 0.05

# %% [markdown]
# ## Round afterwards, or train with the rounding on
#
# All of this was *post-training quantization* (PTQ): the weights are as they were trained, and are
# rounded. *Quantization-aware training* (QAT) rounds during training, so that the weights learn to
# live on the grid. Chapter 08 does it to the model. Here is the idea, on one matrix at 2 bits.


# %%
def trained_on_grid(weight, x, scheme, steps=60):
    """Weights moved so that the *rounded* matrix gives the outputs of the original on x."""
    target, moved = x @ weight.T, weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=float(weight.std()) / 150)
    for _ in range(steps):
        rounded = rtn.quantize(moved, scheme).dequantize()
        # Forward with the rounded weights, backward as if rounding were not there.
        straight = moved + (rounded - moved).detach()
        loss = F.mse_loss(x @ straight.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rtn.quantize(moved, scheme).dequantize()


# %% tags=["nbval-ignore-output"]
trained_name = next(iter(some))
two_bits, original = scheme_for("group 32", 2), some[trained_name]
seen_x, unseen_x = inputs[trained_name][:1536], inputs[trained_name][1536:]
learned = trained_on_grid(original, seen_x, two_bits)
rounded = rtn.quantize(original, two_bits).dequantize()
quality = {
    name: [metrics.sqnr_db(original, w), metrics.sqnr_db(unseen_x @ original.T, unseen_x @ w.T)]
    for name, w in {"rounded": rounded, "trained, then rounded": learned}.items()
}
for name, (of_weights, of_outputs) in quality.items():
    print(f"{name:22} weights {of_weights:4.1f} dB, outputs on unseen tokens {of_outputs:4.1f} dB")

# %% [markdown]
# Judged by its weights the trained matrix is *worse*; judged by its outputs, on tokens that it was
# not trained on, it is better. The error of a weight is a stand-in for what matters. GPTQ and AWQ
# (05, 06) are PTQ methods that take this to heart without training.

# %%
print("weights worse:", quality["trained, then rounded"][0] < quality["rounded"][0])
print("outputs better:", quality["trained, then rounded"][1] > quality["rounded"][1])
assert quality["trained, then rounded"][0] < quality["rounded"][0]
assert quality["trained, then rounded"][1] > quality["rounded"][1]

# %% [markdown]
# ## What breaks this
#
# What defeats a scale per output channel is a loud *column*. We make some without changing the
# model: every 128th neuron gets its row of `up_proj` divided by 32 and its column of `down_proj`
# multiplied by 32. 32 is a power of two, so the product is the same to the last bit.


# %%
def with_loud_columns(network, factor=32.0, every=128):
    """The same function in other numbers: some neurons quiet in up, loud in down."""
    changed = copy.deepcopy(network)
    for up, down in feed_forwards(changed):
        up[::every] /= factor
        down[:, ::every] *= factor
    return changed


loud_model = with_loud_columns(model)
with torch.inference_mode():
    two = [network(input_ids=ids[:2].to(network.device)).logits for network in (model, loud_model)]
print("the same logits, bit for bit:", torch.equal(*two))
assert torch.equal(*two)

# %%
guess_break = predict(
    "The same function, rounded to 4 bits per output channel: its perplexity is",
    ["the same as before", "up to twice as high", "more than twice as high"],
)

# %% tags=["nbval-ignore-output"]
clean = {s: sweep[s, 4] for s in shares}
broken = {s: ppl(rounded_weights(loud_model, s, 4)) for s in shares}
for s in shares:
    print(f"{s:10} {clean[s]:8.2f} becomes {broken[s]:8.2f}")
times = broken["channel"] / clean["channel"]
guess_break.compare(
    f"{times:.1f} times", correct=guess_break.options[0 if times < 1.05 else 1 if times <= 2 else 2]
)

# %%
if feed_forwards(model):
    print("a scale per row does not help:", broken["channel"] > 1.1 * clean["channel"])
    print(
        "groups of 16 hold most of it:",
        broken["group 16"] < 0.5 * broken["channel"] + clean["channel"],
    )
    assert broken["channel"] > 1.1 * clean["channel"] and broken["group 16"] < broken["channel"]

# %%
fig, ax = figures.new(size=(6.4, 3.4))
for label, values, marker in (("as trained", clean, "o"), ("loud columns", broken, "s")):
    ax.plot(range(len(shares)), [values[s] for s in shares], marker=marker, label=label)
plain_log(ax, "perplexity at 4 bits (log)")
ax.set_xticks(range(len(shares)), labels=[s.replace(" ", "\n") for s in shares])
ax.set(xlabel="who shares a scale")
ax.legend()
figures.show(
    fig,
    alt="Perplexity at 4 bits by granularity: the model with loud columns is far above the one "
    "as trained for scales per tensor and per row, and the gap closes as groups get smaller.",
)

# %% [markdown]
# A group holds the damage to itself: one group of 16 in eight has a loud column in it. The cure
# goes to the cause. A scale per input channel cannot leave *this* sum, but it can be folded into
# the rows of the layer before, where it is free: balance both sides (cross-layer equalization).


# %%
def equalized(network):
    """Every neuron as loud in its row of up as in its column of down; the same function."""
    changed = copy.deepcopy(network)
    for up, down in feed_forwards(changed):
        factor = (down.abs().amax(dim=0) / up.abs().amax(dim=1)).sqrt()
        up *= factor[:, None]
        down /= factor
    return changed


# %% tags=["nbval-ignore-output"]
healed = ppl(rounded_weights(equalized(loud_model), "channel", 4))
print("perplexity at 4 bits, a scale per output channel")
for label, value in [("as trained", clean), ("loud columns", broken)]:
    print(f"{label:14}{value['channel']:8.2f}")
print(f"{'equalized':14}{healed:8.2f}")

# %%
if feed_forwards(model):
    back = (broken["channel"] - healed) / (broken["channel"] - clean["channel"])
    print("equalization takes back at least half of the damage:", back > 0.5)
    assert back > 0.5

# %% [markdown]
# The same idea with activations in the balance is SmoothQuant (chapter 04), and with a search for
# the factor it is AWQ (chapter 06).
#
# Also: a row with one huge weight (only groups help), a group size that does not divide the row
# (refuse), scales so small that float16 rounds them to 0 (`labkit` rounds up).

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **Per tensor or per channel: what do you gain, what do you pay, and what does the hardware want?**
#
# <details><summary>A model answer</summary>
#
# One scale per tensor lets the loudest channel set the step for all; quiet channels then use a
# handful of codes. A scale per output channel gives each row its own step. It costs 16 bits per
# row, nothing beside thousands of weights, and one multiplication per output, after the integer
# sum, because the scale does not depend on the summed index.
#
# So for weights it is the default. Activations get a scale per tensor when it must be known in
# advance, or per token when it may be computed on the fly. The hardware wants scales that are
# constant along the accumulation: per output channel and per token. A scale per input channel
# would turn each integer product into a float.
#
# </details>

# %% [markdown] tags=["interview"]
# **How many bits per weight does "4-bit, group 128" take? And group 32?**
#
# <details><summary>A model answer</summary>
#
# Codes take 4. Each group adds a 16-bit scale and, if asymmetric, a 4-bit zero-point: 16/128 =
# 0.125, so 4.125 symmetric, and 20/128 makes it 4.156 asymmetric. Group 32: 4.5 and 4.625.
#
# GGUF's Q4_0 is the symmetric group of 32: 18 bytes for 32 weights, 4.5 bits. Whoever wants small
# groups cheaply quantizes the scales as well: double quantization in NF4, super-blocks in the
# K types. I also count what is not quantized, often embedding and head, before I promise a size.
#
# </details>

# %% [markdown] tags=["interview"]
# **When do you make the group smaller, and when do you add a bit instead?**
#
# <details><summary>A model answer</summary>
#
# A bit buys 6 dB. Halving a group of g buys what the spread within the group gives, and costs
# 16/g bits more. From 128 to 64 that is an eighth of a bit, so 0.75 dB is break-even. With loud
# columns or heavy tails a smaller group buys much more than that; with well-behaved rows it buys
# less, and soon the next bit is cheaper.
#
# I would measure both at equal true bits per weight, on outputs or perplexity rather than on
# weights alone, and check that the kernel supports the size: 32, 64 and 128 are common.
#
# </details>

# %% [markdown] tags=["interview"]
# **A layer has a cosine of 0.999 and the model is broken. How can that be?**
#
# <details><summary>A model answer</summary>
#
# Cosine ignores a common factor: a scale that is wrong by 10 % leaves it at 1. It also averages
# over all elements, so one row, one token or one lost outlier disappears among millions. And errors
# add up: dozens of layers, each a little off in the same direction.
#
# 0.999 is about 27 dB, if the error is noise: fine at 4 bits, poor for 8. I would look at SQNR per
# layer and per channel, at the largest error, at the error of outputs on real inputs, and at the KL
# of the logits; then put layers back to full precision one at a time to find the culprit.
#
# </details>

# %% [markdown] tags=["interview"]
# **Weight-only or weight-and-activation: when which?**
#
# <details><summary>A model answer</summary>
#
# Generating for one or few users is bound by reading the weights. Weight-only, 4 bits, reads a
# quarter of the bytes of 16 bits; the arithmetic stays in float, and dequantizing hides behind the
# memory traffic. Activations keep full precision, so quality is easy.
#
# Prefill and large batches are bound by arithmetic. There int8 or FP8 for both sides doubles the
# rate of the matrix units, and weight-only may even be slower than 16 bits. The difficulty is
# activations: outlier features are input channels, whose scales cannot leave the sum, so it takes
# per-token scales and SmoothQuant, a split, or rotation.
#
# </details>

# %% [markdown] tags=["interview"]
# **PTQ or QAT?**
#
# <details><summary>A model answer</summary>
#
# PTQ rounds a trained model: minutes to hours, no labels, a few hundred samples at most. At 8 bits,
# and at 4 bits in groups with GPTQ or AWQ, it is nearly free for large models, so I always start
# there.
#
# QAT puts the rounding into the training loop (forward on the grid, gradient straight through), so
# the weights move to where rounding hurts least. It needs the training pipeline, data and compute;
# it pays at 2 to 3 bits, for small models, for 4-bit activations, or where a fraction of a percent
# counts. A short run at a low learning rate from the PTQ checkpoint often suffices.
#
# </details>

# %% [markdown] tags=["interview"]
# **INT8 per channel is fine, INT4 per channel is broken. What do you do, in order?**
#
# <details><summary>A model answer</summary>
#
# First find where: SQNR of each layer's output on real inputs, then one layer at a time in 4 bits.
# Usually a few layers, often the down projections, whose loudness lies in columns, which a scale
# per row cannot follow.
#
# Then by price: groups of 128, 64, 32 (an eighth to half a bit); balance with the layer before
# (free at run time); a method that uses data, AWQ or GPTQ; the worst layers at 8 bits; QAT last.
# After every step perplexity *and* tasks, at equal true size, because perplexity hides lost
# answers.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Krishnamoorthi 2018](https://arxiv.org/abs/1806.08342): per channel against per tensor
# - [Nagel et al. 2019, Data-free quantization](https://arxiv.org/abs/1906.04721): equalization
# - [Wu et al. 2020, Integer quantization](https://arxiv.org/abs/2004.09602), section 3: scales
#   and hardware
# - [Yao et al. 2022, ZeroQuant](https://arxiv.org/abs/2206.01861): groups and tokens
# - [Dettmers and Zettlemoyer 2022, k-bit scaling laws](https://arxiv.org/abs/2212.09720)
# - [Nagel et al. 2021, A white paper](https://arxiv.org/abs/2106.08295): PTQ and QAT
