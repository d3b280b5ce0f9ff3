# %% [markdown]
# # 04 · Outliers
#
# **Why does INT8 fail on a model that INT8 should fit?**
#
# **You will be able to**
# - find the outlier features of a model, and say what they do to a scale that everybody shares
# - split a matrix product as LLM.int8() does, and get bitsandbytes' result
# - move a channel's loudness into the weights as SmoothQuant does, and choose its alpha
# - rotate a residual stream without changing the model's function
# - say what each of the three costs at run time, and what defeats it
#
# **Time:** 100 minutes · **Before this:** [03_per_channel](03_per_channel.ipynb)

# %%
import math

import numpy as np
import torch
import torch.nn.functional as F

from labkit.core.errors import ModelError
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course import widgets_04_pictures as pictures
from labkit.course.prediction import predict
from labkit.course.widgets_03_pictures import model_maps
from labkit.course.widgets_04_alpha import AlphaSlider
from labkit.course.widgets_04_text import PASSAGES, passage_ids
from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity

# %%
from labkit.models import load
from labkit.models.activations import float_shares, with_llm_int8, with_quantized_activations
from labkit.models.encoder import embed, load_encoder
from labkit.models.plant_outliers import pick_channels, plant
from labkit.models.rotate import rotate
from labkit.models.smooth import smooth as smooth_model
from labkit.models.walking import capture_inputs, decoder_blocks, linear_layers, weight_matrix
from labkit.quantize import llm_int8, rtn
from labkit.quantize.activation import Dynamic, levels_used
from labkit.quantize.int8_matmul import linear as integer_linear
from labkit.quantize.rotation import kurtosis, random_hadamard
from labkit.quantize.smoothquant import (
    A8_TENSOR,
    A8_TOKEN,
    W8,
    column_maxima,
    search_alpha,
    smoothing_scales,
)

# %% [markdown]
# ## A few channels shout
#
# A weight is a number; an *activation* is what flows into a layer, [tokens, channels]. We look at
# a pretrained encoder, all-MiniLM-L6-v2 (22.7 M parameters, 6 blocks, 384 channels), and send
# twelve short passages through it.

# %%
encoder, encoder_tokenizer = load_encoder()
ids = passage_ids(encoder_tokenizer)
layers = linear_layers(encoder)
inputs = {name: v.cpu() for name, v in capture_inputs(encoder, ids, layers).items()}
weights = {name: weight_matrix(layer).detach().cpu() for name, layer in layers.items()}
print(f"{len(layers)} linear layers, {ids.numel()} tokens")
print("for example:", PASSAGES[4][:60], "…")

# %% [markdown]
# Each block has two places where all 384 channels come out of a norm and enter linear layers: in
# front of attention, and in front of the feed-forward. How loud is each channel there?

# %%
entries = {
    f"block {name.split('.')[2]}, {'attention' if 'query' in name else 'feed-forward'}": name
    for name in layers
    if name.endswith(("self.query", "intermediate.dense"))
}
maxima = {label: inputs[name].abs().amax(dim=0) for label, name in entries.items()}
figures.show(
    pictures.channel_map(maxima),
    alt="Heat map of the largest |x| of 384 channels in the inputs of twelve layers: dark nearly "
    "everywhere, and a few bright vertical lines, the same channels in layer after layer.",
)

# %%
ratios = {label: float(m.max() / m.median()) for label, m in maxima.items()}
loudest = {label: int(m.argmax()) for label, m in maxima.items()}
favourite = max(set(loudest.values()), key=list(loudest.values()).count)
hits = list(loudest.values()).count(favourite)
print(f"channel {favourite} is the loudest in {hits} of {len(maxima)} places")
print(f"loudest over middle channel: {min(ratios.values()):.0f} to {max(ratios.values()):.0f}")
assert hits >= 6 and max(ratios.values()) > 10

# %% [markdown]
# The same few channels, in every layer: these are **outlier features**. In models beyond some
# billions of parameters they reach 20 to 100 times the rest, in nearly every token. LLM.int8()
# defines them: |x| of at least 6, in at least 6 % of the tokens, in at least 25 % of the layers.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 04.1 · Find the outlier features
#
# *10 minutes, difficulty 2 of 5.* `hidden` is float [layers, tokens, features]. A feature is loud
# *in a layer* when |x| is at least `threshold` in at least the share `token_share` of that layer's
# tokens. It is an outlier when that is so in at least the share `layer_share` of the layers.
# Return the outliers' indices, int64, ascending. Stuck? `hint("04.1")`; `reveal("04.1")` shows
# the answer.


# %% tags=["exercise-04.1"]
def outlier_features(hidden, threshold, layer_share, token_share):
    """Indices of the features of `hidden` [layers, tokens, features] that are outliers."""
    ...


check("04.1", outlier_features)

# %%
hidden = torch.stack([inputs[name] for name in entries.values()])
found = llm_int8.outlier_features(hidden)
loud_share = (hidden.abs() >= 6).float().mean(dim=(0, 1))
print("outlier features by the paper's definition:", found.tolist())
print(f"share of all values of channel {favourite} that reach 6: {loud_share[favourite]:.1%}")
assert 0 < len(found) <= 4 and loud_share[favourite] < 0.1

# %% [markdown]
# The loudest channel is not even among them. It shouts in a few tokens only, and the definition
# asks for 6 % of them. For a scale that all tokens share, one shout is enough.

# %% [markdown]
# ## What is left of the grid
#
# Take the layer with the worst ratio. With int8 and one scale for the whole tensor there are 255
# codes, -127 to 127. The loudest value gets code 127. How many codes does the *middle* channel
# use, over all tokens?

# %%
guess_codes = predict(
    "Of 255 codes, how many does the middle channel use?", ["over 100", "30 to 100", "under 30"]
)

# %%
worst_label = max(ratios, key=ratios.get)
worst_name = entries[worst_label]
x, weight = inputs[worst_name], weights[worst_name]
shared = Dynamic(A8_TENSOR)(x)
used = levels_used(shared)
middle = int(used.median())
guess_codes.compare(
    f"{middle}",
    correct="under 30" if middle < 30 else "30 to 100" if middle <= 100 else "over 100",
)

# %%
loud_channel = int(x.abs().amax(dim=0).argmax())
figures.show(
    pictures.crushed(x, used, f"{worst_label}: 384 channels, int8, one scale"),
    alt=f"Above: the range of 384 channels, all short but for channel {loud_channel}. Below: the "
    f"codes that each of them uses, {middle} of 255 for the middle one.",
)
assert middle < 30

# %% [markdown]
# This is the picture that every text on outliers draws by hand, here with measured values. The
# loud channel decides the step; the others share what is left. Eight bits were paid for, and most
# channels get fewer than four bits' worth.

# %%
bits_left = math.log2(middle)
print(f"the middle channel has {bits_left:.1f} bits, not 8")
per_token = levels_used(Dynamic(A8_TOKEN)(x))
print("with a scale for each token it uses more codes:", int(per_token.median()) > 2 * middle)
assert bits_left < 4

# %% [markdown]
# Why not give every *channel* its own scale? Look at the sum: y = Σ xᵢ wᵢ runs over channels. A
# scale per token or per output leaves that sum; a scale per channel stays inside, and the integer
# product is gone (chapter 03). So we measure what can be had.


# %%
def w8a8(x, weight, activation):
    """The integer product: int8 inputs, int8 weight with a scale for each output."""
    quantized = rtn.quantize(weight, W8, scale_dtype=torch.float32)
    return integer_linear(Dynamic(activation)(x), quantized)


exact = x @ weight.T
figures_db = {
    "one scale": sqnr_db(exact, w8a8(x, weight, A8_TENSOR)),
    "a scale per token": sqnr_db(exact, w8a8(x, weight, A8_TOKEN)),
}
int8_weight = rtn.quantize(weight, W8, scale_dtype=torch.float32).dequantize()
figures_db["float x, int8 weight"] = sqnr_db(exact, x @ int8_weight.T)
for name, decibels in figures_db.items():
    print(f"{name:22} outputs at {decibels:.0f} dB")

# %% [markdown]
# The last line is the ceiling: what remains when only the weight is rounded. Per token already
# helps here, since the loud channel shouts in few tokens; in the others the grid is fine. Where
# *every* token has the outlier, as in large models, each token's grid is spoilt by its own. We
# shall see both.

# %%
assert figures_db["one scale"] + 6 < figures_db["a scale per token"]
assert figures_db["a scale per token"] + 6 < figures_db["float x, int8 weight"]
print("one scale loses more than 6 dB, one bit, to per token; per token more than that to float")

# %% [markdown]
# Does it matter in the end? The encoder's product is a sentence embedding. How far does each turn,
# when all 36 layers run in integers?

# %%
reference = embed(encoder, encoder_tokenizer, list(PASSAGES))


def turned(model):
    """Mean cosine between the model's embeddings and those in floating point."""
    return float((embed(model, encoder_tokenizer, list(PASSAGES)) * reference).sum(dim=1).mean())


cosines = {
    "W8A8, one scale": turned(with_quantized_activations(encoder, "dynamic")),
    "W8A8, per token": turned(with_quantized_activations(encoder, "token")),
    "W8A6, one scale": turned(with_quantized_activations(encoder, "dynamic", bits=6)),
    "W8A6, per token": turned(with_quantized_activations(encoder, "token", bits=6)),
}
for name, cosine in cosines.items():
    print(f"{name:17} cosine {cosine:.2f}")
assert cosines["W8A8, one scale"] < cosines["W8A8, per token"]
assert cosines["W8A6, one scale"] < 0.85 < cosines["W8A6, per token"]

# %% [markdown]
# ## Cure 1: split them off
#
# **LLM.int8()** multiplies the few loud columns in floating point and the rest in int8:
#
# y = x[:, loud] w[:, loud]ᵀ + s_x s_w (q_x[:, rest] q_w[:, rest]ᵀ)
#
# A column is loud if any |x| in it reaches the threshold, 6.0. It is looked for anew in every call.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 04.2 · Split the matrix product
#
# *15 minutes, difficulty 3 of 5.* `x` is float [tokens, in], `weight` float [out, in]. Return
# x @ weight.T, float [tokens, out]: columns of x with any |x| >= `threshold` multiplied in float,
# the others as int8 codes, -127 to 127, summed in int32. The scale of a token comes from its quiet
# columns alone; the scale of a weight row from the whole row, for it is stored beforehand.
#
# All columns may be loud, or none. `hint("04.2")`, `reveal("04.2")`.


# %% tags=["exercise-04.2"]
def split_matmul(x, weight, threshold):
    """x @ weight.T: columns of x with any |x| >= threshold in float, the others in int8."""
    ...


check("04.2", split_matmul)

# %%
guess_share = predict(
    "How many of the 384 columns must leave, so that the error nearly reaches the ceiling?",
    ["under 2 %", "2 to 10 %", "over 10 %"],
)

# %%
stored = llm_int8.quantize(weight)
thresholds = [math.inf, 12.0, 6.0, 4.0, 3.0, 2.0, 1.5]
shares, gains = [], []
for threshold in thresholds:
    shares.append(len(llm_int8.outlier_columns(x, threshold)) / x.shape[1])
    gains.append(sqnr_db(exact, llm_int8.linear(x, stored, threshold=threshold)))
fig, ax = figures.new()
ax.plot([100 * s for s in shares], gains, marker="o")
ax.axhline(figures_db["float x, int8 weight"], color="black", linestyle=":", linewidth=1)
for threshold, share, gain in zip(thresholds, shares, gains, strict=True):
    ax.annotate(f"  {threshold:g}", (100 * share, gain), va="top", fontsize=8)
ax.set_xscale("symlog", linthresh=1)
ax.set(xlabel="columns in floating point (%)", ylabel="SQNR of the outputs (dB)", xlim=(-0.1, 150))
figures.show(
    fig,
    alt="Quality against the share of columns in floating point, a threshold at each point: it "
    "climbs steeply with the first one per cent of columns and then levels off at the ceiling.",
)

# %%
share, decibels = shares[thresholds.index(6.0)], gains[thresholds.index(6.0)]
option = "under 2 %" if share < 0.02 else "2 to 10 %" if share <= 0.1 else "over 10 %"
guess_share.compare(f"{share:.1%} at a threshold of 6, {decibels:.0f} dB", correct=option)
assert share < 0.05 and decibels > figures_db["a scale per token"] + 3

# %% [markdown]
# **The real thing beside it.** bitsandbytes' `Linear8bitLt` on the same numbers. It keeps the
# weight in int8 alone, and dequantizes its loud columns; so do we.

# %%
import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # notices about optional packages
import bitsandbytes as bnb

theirs = bnb.nn.Linear8bitLt(
    weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=6.0
)
theirs.load_state_dict({"weight": weight.half()})
theirs = theirs.to("cpu").eval()
with torch.inference_mode():
    their_y = theirs(x.half()).float()
half_x, half_weight = x.half().float(), weight.half().float()
our_y = llm_int8.linear(half_x, llm_int8.quantize(half_weight))
apart = float((our_y - their_y).norm() / (exact - their_y).norm())
same_columns = theirs.state.idx.tolist() == llm_int8.outlier_columns(half_x).tolist()
print("the same columns leave:", same_columns)
print("closer to theirs than theirs to the exact product:", apart < 1)

# %%
codes_apart = (llm_int8.quantize(half_weight).codes.int() - theirs.state.CB.int()).abs()
our_error, their_error = (float((y - exact).norm()) for y in (our_y, their_y))
print("weight codes at most one apart, and nearly all equal:",
      int(codes_apart.max()) <= 1 and float((codes_apart > 0).float().mean()) < 1e-3)  # fmt: skip
print("our error is not the larger one:", our_error < 1.02 * their_error)
assert same_columns and apart < 1 and our_error < 1.02 * their_error

# %% [markdown]
# They differ in one thing. bitsandbytes takes a token's scale from all values below 6, those in
# loud columns included; the paper, and we, leave these columns out first, so that the step is
# never the coarser one.

# %% [markdown]
# **What it costs.** No calibration, no change to the model, nearly no loss. But each layer looks
# for outliers at run time, gathers columns, runs two products and adds them: LLM.int8() saves
# memory rather than time, and is often slower than 16 bits.

# %% [markdown]
# ## Cure 2: move the loudness
#
# **SmoothQuant** uses a freedom of the product. For any s, one number per input channel,
#
# x wᵀ = (x / s) (w s)ᵀ
#
# Weights are easy to quantize and activations are not, so let the weight carry some of the
# loudness: sⱼ = max|xⱼ|^alpha / max|wⱼ|^(1-alpha).

# %% [markdown]
# Dividing x costs nothing if the op in front is a norm: divide its gain instead. At alpha = 1 all
# channels of x are equally loud and the weight has the whole problem; at alpha = 1/2 both sides
# of a channel have the same maximum.

# %%
guess_alpha = predict(
    "Which alpha is best for this layer?", ["below 0.4", "0.4 to 0.6", "above 0.6"]
)

# %%
block = f"encoder.layer.{worst_name.split('.')[2]}."
names = [worst_name, block + "attention.self.query", block + "output.dense"]
searches = {
    name.removeprefix("encoder.layer."): search_alpha(inputs[name], [weights[name]])
    for name in names
}
figures.show(
    pictures.alpha_curves({n: (s.alphas, s.errors, s.unsmoothed) for n, s in searches.items()}),
    alt="Relative output error of three layers against alpha: each falls well below its dotted "
    "line without smoothing; two rise again towards alpha 1, one falls to the end.",
)

# %%
search = searches[worst_name.removeprefix("encoder.layer.")]
option = guess_alpha.options[0 if search.best < 0.4 else 1 if search.best <= 0.6 else 2]
guess_alpha.compare(f"alpha {search.best:.2f}", correct=option)
smoothed_db = -10 * math.log10(min(search.errors))
print(f"{smoothed_db:.0f} dB, against {figures_db['one scale']:.0f} dB without")
assert smoothed_db > figures_db["one scale"] + 9 and 0.3 < search.best < 1

# %% [markdown]
# Every layer has an optimum of its own. Where the outlier is extreme against small weights, even
# alpha = 1/2 makes things worse than nothing: the layer that comes out of GELU shows it. Move the
# slider and watch both sides.

# %%
slider = AlphaSlider({name: (inputs[name], weights[name]) for name in names})
figures.show_widget(
    slider,
    alt="A choice of layer, a slider for alpha, and the maxima of all channels of x and w.",
)

# %%
slider.alpha.value = 0.0
at_zero = slider.error
slider.alpha.value = search.best
print("alpha 0, balanced weights, is worse than the best:", at_zero > slider.error)
assert slider.error == min(search.errors) < at_zero

# %% [markdown] tags=["exercise-text"]
# ### Exercise 04.3 · Smooth a norm and its linear layer
#
# *12 minutes, difficulty 3 of 5.* A norm's `gain`, float [in], feeds a linear layer of `weight`,
# float [out, in]. `x_max`, float [in], is the largest |x| of each channel between them, measured
# before. With s = x_max^alpha / w_max^(1-alpha), return `(new_gain, new_weight)` that compute the
# same layer with x divided by s.
#
# Where either maximum is 0 there is nothing to balance: s = 1. `hint("04.3")`, `reveal("04.3")`.


# %% tags=["exercise-04.3"]
def smooth(gain, weight, x_max, alpha):
    """(new gain [in], new weight [out, in]): the same layer, with balanced channels."""
    ...


check("04.3", smooth)

# %% [markdown]
# Careful with *where* the fold goes. In a Llama block the norm feeds linear layers and nothing
# else. In this BERT-like encoder the norm's output is also the residual stream: dividing its gain
# would change that too. Here s would have to be applied at run time; `labkit` folds only where it
# is free, and names the rest.

# %%
from labkit.models.families import family
from labkit.models.smooth import norm_folds

try:
    family(encoder)
except ModelError as error:
    print(error.what)

# %% [markdown]
# ## Cure 3: rotate
#
# Another freedom: for any orthogonal Q, x wᵀ = (x Q)(w Q)ᵀ, since Q Qᵀ = 1. Each channel of x Q is
# a mixture of all channels. A Hadamard matrix has entries ±1/√n: one channel that is 100 times
# louder becomes 100/√n, the same in all of them.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 04.4 · Build a Hadamard matrix
#
# *8 minutes, difficulty 2 of 5.* Return Sylvester's matrix, orthonormal, float64 [n, n]: start with
# [[1]], double it as [[H, H], [H, -H]] until it has n rows, and divide so that every row has
# length 1. Where n is no power of two, raise `ValueError`. `hint("04.4")`, `reveal("04.4")`.


# %% tags=["exercise-04.4"]
def hadamard(n):
    """Sylvester's Hadamard matrix, orthonormal, float64 [n, n]; n is a power of two."""
    ...


check("04.4", hadamard)

# %% [markdown]
# 384 = 128 · 3 is no power of two. `random_hadamard` takes the Kronecker product of a Hadamard
# matrix of 128 and a small random orthogonal one, behind random signs. The *kurtosis* of the
# values says how heavy their tails are: 3 for a bell curve.

# %%
guess_kurtosis = predict(
    "The kurtosis of x is in the hundreds. After the rotation?", ["over 50", "10 to 50", "under 10"]
)

# %%
Q = random_hadamard(x.shape[1], seed=0).float()
rotated = x @ Q
figures.show(
    pictures.spread_histograms([("as it is", x), ("rotated", rotated)]),
    alt="Two histograms on one axis: as it is, a narrow peak with a few values far out; rotated, a "
    "bell that ends far closer to zero.",
)
before, after = kurtosis(x), kurtosis(rotated)
guess_kurtosis.compare(f"{after:.1f}", correct="under 10" if after < 10 else "10 to 50")
assert before > 50 and after < 10

# %%
flat = {name: (kurtosis(v), kurtosis(v @ random_hadamard(v.shape[1]).float()))
        for name, v in inputs.items()}  # fmt: skip
fig, ax = figures.new(size=(6.8, 3.2))
for index, (label, marker) in enumerate((("as it is", "o"), ("rotated", "s"))):
    ax.plot([pair[index] for pair in flat.values()], marker, label=label)
ax.axhline(3, color="black", linewidth=1, linestyle=":")
ax.set_yscale("log")
ax.set(xlabel="linear layer of the encoder, in order", ylabel="kurtosis of its input (log)")
ax.legend()
figures.show(
    fig,
    alt="Kurtosis of the inputs of all 36 layers: from below ten to over a thousand as they are, "
    "all near 3, the bell curve, when rotated.",
)
assert max(pair[1] for pair in flat.values()) < 0.2 * max(pair[0] for pair in flat.values())

# %%
figures_db["LLM.int8()"] = decibels
figures_db["SmoothQuant"] = smoothed_db
figures_db["rotation"] = sqnr_db(exact, w8a8(rotated, weight @ Q, A8_TENSOR))
for name, value in sorted(figures_db.items(), key=lambda item: item[1]):
    print(f"{name:22} {value:3.0f} dB")
cured = min(figures_db[name] for name in ("LLM.int8()", "SmoothQuant", "rotation"))
print("every cure gains more than 10 dB:", cured > figures_db["one scale"] + 10)
assert cured > figures_db["one scale"] + 10

# %% [markdown]
# At 6 dB a bit, each cure gives back about two bits, or three. Rotation does it with one scale,
# without calibration and without a threshold. What it needs is a place where Q can hide.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 04.5 · Rotate between two layers
#
# *10 minutes, difficulty 3 of 5.* A *writer* [hidden, in] makes h = x @ writer.T, and a *reader*
# [out, hidden] makes y = h @ reader.T. Return `(new_writer, new_reader)` so that the stream between
# them is h @ Q and y is what it was. `rotation` is Q, float [hidden, hidden], orthogonal, not
# symmetric in general. `hint("04.5")`, `reveal("04.5")`.


# %% tags=["exercise-04.5"]
def rotate_pair(writer, reader, rotation):
    """(new writer [hidden, in], new reader [out, hidden]): the stream between is h @ Q."""
    ...


check("04.5", rotate_pair)

# %% [markdown]
# ## The whole language model
#
# In a Llama, everything between embedding and head is one residual stream: the embedding writes,
# each block reads it through a norm and writes back. Rotate all writers and all readers, and the
# model computes the same. A norm's gain does not commute with Q, so it is fused into its readers
# first.

# %%
model, tokenizer = load()


def ids_of(split, tokens, length=256):
    """Token ids of prose, int64 [sequences, length]."""
    text = load_corpus("stdlib-prose", split).text[: 12 * tokens]
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    return torch.tensor(found).reshape(-1, length)


calibration = ids_of("calibration", 2048)
turned_model = rotate(model)
with torch.inference_mode():
    two = [m(input_ids=calibration[:2].to(m.device)).logits for m in (model, turned_model.model)]
largest = float((two[0] - two[1]).abs().max() / two[0].abs().max())
print("logits differ by less than a ten-thousandth:", largest < 1e-4)
for note in turned_model.notes:
    print("note:", note.split(":")[0])
assert largest < 1e-4

# %% [markdown]
# Head and embedding shared one tensor; the head now carries the final norm's gain and cannot share
# any more. A tool that unties in silence lets the file grow in silence.

# %% [markdown]
# Our small model grew no outliers in front of its linear layers. So we **plant** some, without
# changing what it computes: in three channels every norm's gain is multiplied by 128 and the
# columns that read it are divided by 128. Powers of two are exact.

# %%
hidden_size = model.get_input_embeddings().weight.shape[1]
planted = plant(model, pick_channels(hidden_size, 3, seed=0), factor=128.0)
sick = planted.model
with torch.inference_mode():
    two = [m(input_ids=calibration[:2].to(m.device)).logits for m in (model, sick)]
print("channels", planted.channels, "in", len(planted.norms), "norms")
print("the same logits:", torch.allclose(*two, rtol=0, atol=1e-5 * float(two[0].abs().max())))
assert torch.allclose(*two, rtol=0, atol=1e-5 * float(two[0].abs().max()))

# %% [markdown]
# Every token now has the outlier, as in a large model. First the weights: they are int8 per output
# channel in all that follows, and harmless. Guess what the activations do.

# %%
guess_naive = predict(
    "Perplexity with one static int8 scale per activation, against floating point?",
    ["up to 1.5 times", "1.5 to 5 times", "over 5 times"],
)
heldout = load_corpus("stdlib-prose", "heldout").text


def ppl(network):
    """Perplexity on held-out prose, 2048 tokens at a context of 256."""
    return perplexity(network, tokenizer, heldout, context=256, max_tokens=2048).value


def static(network, **options):
    """The network with static int8 activations, calibrated on prose."""
    return with_quantized_activations(network, "static", calibration=calibration, **options)


# %% [markdown]
# The threshold of LLM.int8() was chosen for models whose normal values lie within ±3. Ours are
# larger in places, so each layer gets 8 times its middle channel's maximum. (What 6.0 does here is
# shown under "What breaks this".)

# %%
seen = {n: v.cpu() for n, v in capture_inputs(sick, calibration, linear_layers(sick)).items()}
own_thresholds = {n: 8 * float(v.abs().amax(dim=0).median()) for n, v in seen.items()}
split_model = with_llm_int8(sick, own_thresholds)
smoothed = smooth_model(sick, calibration, alpha=0.5)
print("left out by SmoothQuant, for example:", smoothed.skipped[0] if smoothed.skipped else "none")

# %% tags=["nbval-ignore-output"]
base = ppl(model)
rows = {
    "naive: one static scale": ppl(static(sick)),
    "one dynamic scale": ppl(with_quantized_activations(sick, "dynamic")),
    "a scale per token": ppl(with_quantized_activations(sick, "token")),
    "LLM.int8()": ppl(split_model),
    "SmoothQuant, static": ppl(static(smoothed.model)),
    "SmoothQuant, per token": ppl(with_quantized_activations(smoothed.model, "token")),
    "norms fused, static": ppl(static(rotate(sick, torch.eye(hidden_size)).model)),
    "rotation, static": ppl(static(rotate(sick).model)),
    "rotation, per token": ppl(with_quantized_activations(rotate(sick).model, "token")),
    "no outliers, static": ppl(static(model)),
}
print(f"{'floating point':24}{base:9.2f}")
for name, value in rows.items():
    print(f"{name:24}{value:9.2f}")

# %% tags=["nbval-ignore-output"]
times = rows["naive: one static scale"] / base
option = guess_naive.options[0 if times <= 1.5 else 1 if times <= 5 else 2]
guess_naive.compare(f"{times:.1f} times", correct=option)
assert times > 3

# %%
figures.show(
    pictures.price_bars(rows, base),
    alt="Perplexity with integer activations, one bar a method: naive far to the right, per token "
    "much better but not cured, LLM.int8, SmoothQuant and rotation at the floating-point line.",
)
assert rows["naive: one static scale"] > 3 * base
assert base * 1.05 < rows["a scale per token"] < 0.5 * rows["naive: one static scale"]
cures = ("LLM.int8()", "SmoothQuant, static", "rotation, static", "norms fused, static")
print("every cure within 5 %:", all(rows[name] < 1.05 * base for name in cures))
assert all(rows[name] < 1.05 * base for name in cures)

# %% [markdown]
# A scale per token cures only in part, because every token has the outlier. And look at "norms
# fused": our outliers sat in the norms' gains, so fusing the gain, the first step of a rotation,
# already removes them. That is no credit to the rotation. It deserves a harder test.

# %% [markdown]
# ## Outliers in the stream itself
#
# Rotation can make outliers as well as cure them. Turn the stream so that its strongest direction
# becomes *one channel* (Q = eigenvectors of the stream): same function, and now the loudness is in
# the stream, where no gain can take it away. To make it hurt, activations get 4 bits.

# %%
flat_model = rotate(model, torch.eye(hidden_size)).model
prefix, blocks = decoder_blocks(model)
folds = [(i, fold) for i, b in enumerate(blocks) for fold in norm_folds(family(model), b)]
stream_names = [f"{prefix}.{i}.{linear}" for i, fold in folds for linear in fold.linears]
streams = capture_inputs(flat_model, calibration, stream_names)
stream = torch.cat([v.double() for v in streams.values()])
energy, directions = torch.linalg.eigh(stream.T @ stream)
print(f"the strongest of {hidden_size} directions holds more than 10 % of the energy:",
      float(energy[-1] / energy.sum()) > 0.1)  # fmt: skip
gathered = rotate(model, directions.flip(1)).model
spread = rotate(gathered).model
assert float(energy[-1] / energy.sum()) > 0.1

# %% tags=["nbval-ignore-output"]
stages = {"as trained": model, "norms fused": flat_model}
stages |= {"gathered": gathered, "gathered, rotated": spread}
four = {
    name: [ppl(with_quantized_activations(network, "token", bits=bits)) for bits in (8, 4)]
    for name, network in stages.items()
}
print(f"{'':20}{'W8A8':>8}{'W8A4':>8}   (a scale per token)")
for name, (eight, fewer) in four.items():
    print(f"{name:20}{eight:8.2f}{fewer:8.2f}")

# %%
print("8 bits per token stand it:", four["gathered"][0] < 1.05 * base)
print("4 bits do not:", four["gathered"][1] > 1.25 * four["as trained"][1])
back = four["gathered, rotated"][1] < 1.1 * four["as trained"][1]
print("a random rotation brings them back:", back)
assert four["gathered"][0] < 1.05 * base and four["gathered"][1] > 1.25 * four["as trained"][1]
assert back

# %% [markdown]
# This is why the 4-bit activation methods (QuaRot, SpinQuant) rotate: nothing else removes a loud
# direction of the stream at no cost at run time.

# %% [markdown]
# ## The whole model, before and after
#
# Every linear layer's output, in dB, under one static int8 scale for its input. Which kinds of
# layer does each cure reach? Look at `o_proj` and `down_proj`.


# %%
def layer_quality(network):
    """SQNR of each layer's outputs, int8 weight and one int8 scale for its input."""
    found = capture_inputs(network, calibration[:2], linear_layers(network))
    quality = {}
    for name, layer in linear_layers(network).items():
        w = weight_matrix(layer).detach().float()
        quality[name] = sqnr_db(found[name] @ w.T, w8a8(found[name], w, A8_TENSOR))
    return quality


panels = [
    ("planted, naive", layer_quality(sick)),
    ("SmoothQuant", layer_quality(smoothed.model)),
    ("rotation", layer_quality(rotate(sick).model)),
]

# %%
figures.show(
    model_maps(panels, label="SQNR (dB)"),
    alt="SQNR of every layer's outputs, kinds by blocks, three times: with planted outliers the "
    "layers behind norms are dark; SmoothQuant and rotation brighten them; down_proj stays.",
)
behind_norm = [n for n in panels[0][1] if n in stream_names]
lowest = [min(quality[n] for n in behind_norm) for _, quality in panels]
print("behind the norms both cures lift the worst layer by more than 10 dB:",
      min(lowest[1:]) > lowest[0] + 10)  # fmt: skip
assert min(lowest[1:]) > lowest[0] + 10

# %% [markdown]
# ## What each costs
#
# | | before | at run time | reaches |
# |---|---|---|---|
# | scale per token | nothing | a maximum per token | loud tokens |
# | LLM.int8() | nothing | search, gather, two products | any layer |
# | SmoothQuant | calibration, a fold | nothing | layers behind a norm |
# | rotation | fusing, a fold, untying | nothing | readers of the stream |
# | online Hadamard | a fold | n log n additions a token | any layer |

# %% [markdown]
# ## What breaks this
#
# **A threshold that does not know the model.** 6.0 is an absolute number. In our model some
# inputs are larger than that everywhere.

# %% tags=["nbval-ignore-output"]
fixed = with_llm_int8(sick, 6.0)
with torch.inference_mode():
    fixed(input_ids=calibration[:4].to(sick.device))
everywhere = float_shares(fixed)
worst_share = max(everywhere, key=everywhere.get)
print("share of columns in floating point at a threshold of 6.0:")
for kind in dict.fromkeys(name.split(".")[-1] for name in everywhere):
    mean = np.mean([s for n, s in everywhere.items() if n.endswith(kind)])
    print(f"  {kind:10} {mean:5.0%}")
assert max(everywhere.values()) > 0.9 and min(everywhere.values()) < 0.1

# %% [markdown]
# The results are right and the memory is saved, but in these layers hardly anything is left for
# int8. A threshold needs a look at the model, or a report: `float_shares` is one.

# %% [markdown]
# **A place that no fold reaches.** The input of `down_proj` is a product of two branches behind
# SiLU. No norm stands in front, the stream is elsewhere, and it has outliers of its own, in single
# tokens.

# %% tags=["nbval-ignore-output"]
down = max((n for n in seen if seen[n].shape[1] != hidden_size), key=lambda n: kurtosis(seen[n]))
v, w = seen[down], weight_matrix(linear_layers(sick)[down]).detach().cpu()
turn = random_hadamard(v.shape[1]).float()
options = {
    "one scale": w8a8(v, w, A8_TENSOR),
    "per token": w8a8(v, w, A8_TOKEN),
    "online Hadamard, one scale": w8a8(v @ turn, w @ turn, A8_TENSOR),
    "online Hadamard, per token": w8a8(v @ turn, w @ turn, A8_TOKEN),
}
quality = {name: sqnr_db(v @ w.T, y) for name, y in options.items()}
print(f"{down}, kurtosis over 50: {kurtosis(v) > 50}")
for name, value in sorted(quality.items(), key=lambda item: item[1]):
    print(f"  {name:27} {value:3.0f} dB")
assert quality["one scale"] + 6 < min(quality["per token"], quality["online Hadamard, one scale"])

# %% [markdown]
# So QuaRot runs a Hadamard transform there, online: n log n additions for each token, fused into
# the kernel in front. `labkit.quantize.rotation.fast_hadamard` is that transform.

# %% [markdown]
# **One loud token.** A rotation mixes channels, never tokens; smoothing scales channels. If one
# token is 100 times louder in *all* channels, both keep a scale that is too coarse for the rest.

# %%
generator = torch.Generator().manual_seed(0)
shout = torch.randn(64, 256, generator=generator)
shout[0] *= 100
u = torch.randn(128, 256, generator=generator)
spin = random_hadamard(256).float()
s = smoothing_scales(shout.abs().amax(dim=0), column_maxima([u]), 0.5)
tries = {
    "one scale": w8a8(shout, u, A8_TENSOR),
    "SmoothQuant": w8a8(shout / s, u * s, A8_TENSOR),
    "rotation": w8a8(shout @ spin, u @ spin, A8_TENSOR),
    "per token": w8a8(shout, u, A8_TOKEN),
}
others = {name: sqnr_db((shout @ u.T)[1:], y[1:]) for name, y in tries.items()}
for name, value in others.items():
    print(f"{name:12} the other tokens at {value:3.0f} dB")
assert others["per token"] > max(others["SmoothQuant"], others["rotation"]) + 15

# %% [markdown]
# Also: SmoothQuant calibrated on text in which the loud channel was silent; a norm that feeds more
# than linear layers; alpha = 1 with a loud weight; a NaN, which a rotation would spread over every
# channel (`labkit` refuses it).

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **What is the outlier problem, and which methods solve it?**
#
# <details><summary>A model answer</summary>
#
# Transformers grow a few hidden channels whose activations are 10 to 100 times larger than the
# rest, the same channels in all layers. Under one int8 scale they set the step, and the normal
# channels are left with a handful of codes. A scale per channel would help but cannot leave the
# sum of the matrix product.
#
# Three cures. LLM.int8() splits those columns off and multiplies them in 16 bits. SmoothQuant
# divides them by a factor that the norm in front absorbs and the weight carries. Rotation mixes
# all channels with an orthogonal matrix that is folded into the weights. AWQ looks related, but
# protects weights that meet loud channels; its activations stay in 16 bits.
#
# </details>

# %% [markdown] tags=["interview"]
# **Three cures: what does each cost at run time?**
#
# <details><summary>A model answer</summary>
#
# LLM.int8() costs most: it searches for loud columns in every call, gathers them, runs a second
# product in 16 bits and adds. It saves memory, needs no calibration, and is often slower than
# plain 16 bits.
#
# SmoothQuant costs nothing at run time: factors are folded into norms and weights beforehand. It
# needs calibration data and a norm (or a linear layer) in front, so o_proj and down_proj keep
# their own outliers.
#
# Rotation of the residual stream is also folded. Norm gains are fused first and a tied head has
# to be untied. Where nothing can absorb it, in front of down_proj, an online Hadamard transform
# costs n log n additions per token.
#
# </details>

# %% [markdown] tags=["interview"]
# **After INT8 quantization of weights and activations a model fails at arithmetic, while chat looks
# fine. What do you do?**
#
# <details><summary>A model answer</summary>
#
# First find out where. I compare the layers' outputs with the float model on prompts that fail,
# layer by layer, and look at the largest activation per channel and per token. I expect a few
# layers with one scale for inputs whose maximum is far above the median.
#
# Then the cheapest cure that fits: per-token scales if loud tokens are the cause; SmoothQuant for
# layers behind norms; the few remaining layers, often down_proj, in 16 bits or with a rotation.
# Weight-only quantization (AWQ, GPTQ) is the fallback if activations need not be int8. I confirm
# on the failing task, since perplexity barely moves.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why not simply give every activation channel its own scale?**
#
# <details><summary>A model answer</summary>
#
# Output j is the sum over channels i of x_i w_ji. With s_i inside, each integer product would have
# to be multiplied by its own float before it is added: no integer accumulation, no int8 matrix
# unit.
#
# Scales per token or per output channel are constant over i and leave the sum. What can be done
# with s_i is to move it into the weight *before* it is quantized, which is SmoothQuant: then the
# weight's row has one scale again, and the division of x hides in the norm.
#
# </details>

# %% [markdown] tags=["interview"]
# **How do you choose SmoothQuant's alpha?**
#
# <details><summary>A model answer</summary>
#
# Alpha says how much of the difficulty moves to the weights. At 1 all channels of x are equal and
# the weight columns carry everything; at 0 the reverse. The paper uses 0.5 for OPT and BLOOM, and
# 0.75 to 0.85 where outliers are stronger.
#
# It can be searched: quantize both sides on calibration inputs for a grid of alphas and keep the
# one with the least *output* error, for each norm separately. I watch for layers where 0.5 is worse
# than nothing. Per-token activation scales flatten the optimum.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why may one rotate a transformer at all, and what must be changed first?**
#
# <details><summary>A model answer</summary>
#
# RMSNorm divides by the length of the vector, which an orthogonal matrix keeps, so
# norm(x Q) = norm(x) Q. If every writer into the residual stream multiplies by Q and every reader
# by its transpose, the function is unchanged.
#
# Two things do not commute. The norm's gain is a diagonal matrix: fuse it into the readers.
# LayerNorm's mean subtraction: take the mean out of all writers, which turns it into an RMSNorm. A
# head tied to the embedding must be untied, because it takes the final gain. RoPE, attention heads
# and the feed-forward's inside are not touched.
#
# </details>

# %% [markdown] tags=["interview"]
# **Static or dynamic activation scales?**
#
# <details><summary>A model answer</summary>
#
# Static scales come from calibration: nothing to compute at run time, the quantization fuses with
# the op before, but a value beyond the range is clipped, and one scale must serve all tokens.
# Dynamic scales need a maximum over the tensor or the token before the product can start; they
# never clip.
#
# Per token and dynamic is the usual choice for LLMs on a GPU, for it costs little there. Static per
# tensor is for hardware that wants fixed scales; it needs the outliers out of the way first.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Dettmers et al. 2022, LLM.int8()](https://arxiv.org/abs/2208.07339): outlier features
# - [Xiao et al. 2023, SmoothQuant](https://arxiv.org/abs/2211.10438)
# - [Ashkboos et al. 2024, QuaRot](https://arxiv.org/abs/2404.00456) and
#   [SliceGPT](https://arxiv.org/abs/2401.15024), section 3: computational invariance
# - [Liu et al. 2024, SpinQuant](https://arxiv.org/abs/2405.16406): learned rotations
# - [Bondarenko et al. 2023, Quantizable Transformers](https://arxiv.org/abs/2306.12929): where
#   outliers come from
# - [Chee et al. 2023, QuIP](https://arxiv.org/abs/2307.13304): incoherence
