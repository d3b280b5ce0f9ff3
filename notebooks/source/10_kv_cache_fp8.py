# %% [markdown]
# # 10 · KV cache and FP8
#
# **What fills the memory when the weights no longer do?**
#
# **You will be able to**
# - compute a cache's size for any model, and check it against bytes that are really held
# - store keys and values in 8 or 4 bits, and say on which axis each wants its scale
# - compute attention from the codes, without a float copy of the cache
# - run many sequences in one memory with pages, and measure what pages save
# - tell what FP8 changes against INT8: for caches, weights and activations
#
# **Time:** 90 minutes · **Before this:** [04_outliers](04_outliers.ipynb)

# %%
import math
import time
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache

from labkit.core.errors import NonFiniteError, PoolError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.memory import gib, kv_cache_bytes, weight_bytes
from labkit.core.metrics import sqnr_db
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course import widgets_10_pages as server
from labkit.course import widgets_10_pictures as pictures

# %%
from labkit.course.prediction import predict
from labkit.course.widgets_10_memory import CacheExplorer, stored_bits
from labkit.data import load_corpus
from labkit.evaluate.cache_losses import cached_logits, token_divergences, token_losses
from labkit.kernels import decode_attention, fp8_linear
from labkit.models import load
from labkit.models.activations import with_quantized_activations
from labkit.models.apply import quantize_model
from labkit.models.float8 import with_float8
from labkit.models.plant_key_outliers import plant_in_keys
from labkit.models.plant_outliers import pick_channels, plant
from labkit.nn.kv_cache import KINDS, KVCache
from labkit.nn.kv_cache_attention import attend_floats
from labkit.nn.kv_cache_rounded import RoundedCache
from labkit.nn.kv_cache_transformers import TransformersCache
from labkit.nn.paged_cache import PagedCache
from labkit.quantize.float8_activation import quantize_float8
from labkit.quantize.kv_rounding import round_along

# %% [markdown]
# ## What a token leaves behind
#
# To write token 1001 a model attends to 1000 before it. Their keys and values are kept: the **KV
# cache**. Each token leaves a key and a value in every layer, for every key head:
#
# $$ 2 \cdot \text{layers} \cdot \text{kv heads} \cdot \text{head dim} \cdot \text{tokens}
# \cdot \text{sequences} \cdot \text{bytes} $$

# %%
guess_full = predict(
    "Llama-2-7B in 4-bit weights, a 16-bit cache, one sequence: when is the cache as large as the "
    "weights?",
    ["at about 1000 tokens", "at about 7000 tokens", "at about 50000 tokens"],
)

# %%
seven = MODEL_SHAPES["llama-2-7b"]
one_token = kv_cache_bytes(seven, context=1)
weights_4 = weight_bytes(seven, 4.125)
print(f"one token: {one_token / 2**10:.0f} KiB; the weights: {gib(weights_4):.1f} GiB")
even = weights_4 / one_token
guess_full.compare(f"{even:.0f} tokens", correct=guess_full.options[1])
assert 5000 < even < 9000

# %% [markdown]
# Is that what a program really holds? The bundled model reads 100 tokens, and we add up the bytes
# of the tensors that transformers keeps for it, and of ours.

# %%
model, tokenizer = load()
text = load_corpus("stdlib-prose", "heldout").text
CONTEXT = min(512, model.config.max_position_embeddings)
ids = torch.tensor(tokenizer(text[:12000], verbose=False)["input_ids"])
ids = ids[: 2 * CONTEXT].reshape(2, CONTEXT)
theirs = DynamicCache()
with torch.inference_mode():
    model(ids[:1, :100], past_key_values=theirs, use_cache=True)
held = sum(part.nbytes for layer in theirs for part in layer[:2])  # keys, values

# %%
ours = {kind: KVCache.for_model(model, kind, capacity=100) for kind in KINDS}
fp16 = ours["fp16"]
dim, kv_heads = fp16.head_dim, fp16.kv_heads
numbers = 2 * len(fp16.layers) * kv_heads * dim * 100
print("transformers, float32, is the formula:", held == numbers * 4)
print("ours, float16, is the formula:", fp16.nbytes == numbers * 2)
for kind in KINDS:
    print(f"{kind}: {stored_bits(kind, dim):.2f} bits a number in a long cache")
assert held == numbers * 4 and fp16.nbytes == numbers * 2

# %% [markdown]
# **Fewer key heads.** Query heads can share keys: groups of them in GQA, all of them in MQA. The
# same 7B shape with three numbers of key heads:

# %%
contexts = np.array([2**power for power in range(9, 18)])
heads_of = {"MHA, 32 key heads": 32, "GQA, 8": 8, "MQA, 1": 1}
sizes = {}
fig, ax = figures.new(size=(6.8, 3.6))
for name, heads in heads_of.items():
    scale = heads / seven.kv_heads
    sizes[name] = [gib(kv_cache_bytes(seven, int(c)) * scale) for c in contexts]
    ax.plot(contexts, sizes[name], marker="o", label=name)
ax.axhline(gib(weights_4), color="black", linestyle=":", label="weights in 4 bits")
ax.set(xscale="log", yscale="log", xlabel="tokens of context, all sequences together",
       ylabel="GiB")  # fmt: skip
ax.set_xticks(contexts[::2], [f"{c // 1024}k" if c >= 1024 else str(c) for c in contexts[::2]])
ax.legend()
figures.show(fig, alt=f"Three straight lines of cache against context: at 128k tokens "
             f"{sizes['MHA, 32 key heads'][-1]:.0f} GiB with 32 key heads, "
             f"{sizes['GQA, 8'][-1]:.0f} with 8, {sizes['MQA, 1'][-1]:.0f} with one.")  # fmt: skip

# %% [markdown]
# GQA is trained into a model; you find it in the config. Fewer *bits* you choose yourself. Set
# model, context and sequences, and see which cards hold it all.

# %%
explorer = CacheExplorer()
figures.show_widget(
    explorer,
    alt="Menus for model and cache, sliders for context and sequences, against memories of GPUs.",
)

# %%
explorer.context.value, explorer.sequences.value = 8192, 32
before = explorer.cache_gib
explorer.kind.value = "int8"
print(f"Llama-3-8B, 32 sequences of 8192: {before:.1f} GiB in float16, "
      f"{explorer.cache_gib:.1f} in int8")  # fmt: skip
assert abs(explorer.cache_gib / before - 8.25 / 16) < 0.01

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.1 · Sequences that fit
#
# *8 minutes, difficulty 2 of 5.* The weights are loaded, `free_gib` GiB are left. How many whole
# sequences of `context` tokens can be served at a time? A quantized cache has scales: one for each
# vector of `head_dim` numbers. `hint("10.1")`, `reveal("10.1")`.


# %% tags=["exercise-10.1"]
def sequences_that_fit(free_gib, shape, context, bits, scale_bits):
    """How many whole sequences of `context` tokens fit into `free_gib` GiB of cache.

    shape: has .layers, .hidden, .heads, .kv_heads, .head_dim. Each number takes `bits`; each
    vector of head_dim numbers has one scale of `scale_bits` (0: none). 1 GiB = 2**30 bytes.
    """
    ...


check("10.1", sequences_that_fit)

# %% [markdown]
# ## It is read again for every token
#
# A cache costs time, too: each step of decoding reads all of it, for a few operations a number. So
# attention over a long context is bound by memory, as weights are. But a server reads weights once
# for *all* sequences of a batch; a cache belongs to one.

# %%
explorer.model.value, explorer.kind.value = "llama-3-8b", "fp16"
batch = np.array([1, 4, 16, 64])
weights_read = explorer.weight_gib
fig, ax = figures.new(size=(6.8, 3.2))
for kind in ("fp16", "int8", "int4"):
    per_sequence = gib(kv_cache_bytes(MODEL_SHAPES["llama-3-8b"], 8192, bits=stored_bits(kind)))
    ax.plot(batch, (weights_read + batch * per_sequence) / batch, marker="o", label=f"{kind} cache")
ax.plot(batch, weights_read / batch, color="black", linestyle=":", label="weights alone")
ax.set(xscale="log", yscale="log", xlabel="sequences at a time",
       ylabel="GiB read for a token")  # fmt: skip
ax.set_xticks(batch, [str(b) for b in batch])
ax.legend(loc="lower left")
figures.show(
    fig,
    alt="GiB read for one token of Llama-3-8B at 8192 tokens of context: weights are "
    "shared out over more sequences, but the cache stays, so the lines level off.",
)

# %% [markdown]
# The codes never become a float copy in memory. One scale a token lets itself be taken out of both
# products of attention:
#
# $$ q \cdot (s_t c_t) = s_t \, (q \cdot c_t), \qquad
#    \sum_t p_t \, (s_t c_t) = \sum_t (p_t s_t) \, c_t $$

# %%
torch.manual_seed(0)
keys, values = torch.randn(2, 1, 2, 300, 64)
query = torch.randn(1, 8, 64)
for kind in ("int8", "fp8"):
    cache = KVCache(kind, layers=1, kv_heads=2, head_dim=64, capacity=300)
    cache.append(0, keys, values)
    from_codes = cache.attend(0, query)  # decode_attention reads the codes
    by_hand = attend_floats(query, cache.keys(0), cache.values(0), 64**-0.5)
    close = torch.allclose(from_codes, by_hand, atol=1e-4)
    print(f"{kind}: from the codes as from the numbers: {close}")
    assert close and sqnr_db(attend_floats(query, keys, values, 0.125), by_hand) > 20

# %% tags=["nbval-ignore-output"]
long_keys, long_values = torch.randn(2, 1, 8, 16384, 64)
long_cache = KVCache("int8", 1, 8, 64, 16384)
long_cache.append(0, long_keys, long_values)
ways = {
    "float32": lambda: attend_floats(query, long_keys, long_values, 0.125),
    "int8": lambda: long_cache.attend(0, query),
}
for name, way in ways.items():
    way()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    print(f"{name}, 16384 tokens: {1e3 * np.median(times):.2f} ms")

# %%
float_bytes = long_keys.nbytes + long_values.nbytes
print(f"int8 reads {long_cache.nbytes / float_bytes:.0%} of float32's bytes")
assert long_cache.nbytes < 0.3 * float_bytes

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.2 · Attention over an int8 cache
#
# *12 minutes, difficulty 3 of 5.* One new token's attention from codes and scales. Use each scale
# where the formulas above put it, not on every number. Query heads share keys in neighbours: with
# 4 heads and 2 KV heads, heads 0 and 1 read the first. `hint("10.2")`, `reveal("10.2")`.


# %% tags=["exercise-10.2"]
def attend(query, key_codes, key_scale, value_codes, value_scale):
    """softmax(q · k / sqrt(dim)) · v for one new token: float [heads, dim].

    query: float [heads, dim]. Codes: int8 [kv_heads, tokens, dim]; scales: float
    [kv_heads, tokens]. Neighbouring query heads share a KV head.
    """
    ...


check("10.2", attend)

# %% [markdown]
# ## What the model says to it
#
# The bundled model reads its own keys and values from four caches. Rounding of a cache adds up
# nowhere: it hits each token's key once. Guess:

# %%
guess_kinds = predict(
    "Which 8-bit cache lies nearer to float16?",
    ["int8, by far", "fp8, by far", "no difference to speak of"],
)


# %%
def with_cache(network, kind, tokens=ids):
    """Logits of a model that reads its keys and values from a cache of this kind."""

    def new(sequences):
        cache = KVCache.for_model(network, kind, tokens.shape[1], sequences)
        return TransformersCache(cache)

    return cached_logits(network, tokens, new)


def perplexity_of(logits, tokens=ids):
    """exp of the mean loss."""
    return float(token_losses(logits, tokens).mean().exp())


logits = {kind: with_cache(model, kind) for kind in KINDS}
apart = {kind: token_divergences(logits["fp16"], logits[kind]).mean(0) for kind in KINDS[1:]}

# %% [markdown]
# Perplexity hardly moves, so we also measure by how much the predicted distributions differ: the
# KL divergence from the float16 cache, in nats, which sees every token of the vocabulary.

# %%
edges = [0, 16, 32, 64, 128, 256, CONTEXT]
middle = [math.sqrt(max(a, 4) * b) for a, b in pairwise(edges)]
losses = {kind: token_losses(logits[kind], ids) for kind in KINDS}
fig, (left, right) = figures.new(1, 2, size=(9.2, 3.4))
for kind, style in zip(KINDS, ("-", "--", ":", "-."), strict=True):
    ppl = [float(losses[kind][:, :e].mean().exp()) for e in edges[1:]]
    left.plot(edges[1:], ppl, style, label=kind)
for kind, colour in zip(KINDS[1:], figures.PALETTE[1:], strict=False):
    kl = [float(apart[kind][a:b].mean()) for a, b in pairwise(edges)]
    right.plot(middle, kl, marker="o", color=colour, label=kind)
left.set(xlabel="tokens of context", ylabel="perplexity up to there")
right.set(yscale="log", xlabel="position", ylabel="KL from float16 (nats)")
for ax in (left, right):
    ax.set_xscale("log", base=2)
    ax.legend()
figures.show(
    fig,
    alt="Perplexity falls over the first tokens; the lines of four caches lie on "
    "each other; the KL divergence of each is flat: int8 lowest, fp8, int4 highest.",
)

# %% tags=["nbval-ignore-output"]
for kind in KINDS:
    kl = float(apart[kind].mean()) if kind in apart else 0.0
    bits = stored_bits(kind, dim)
    print(f"{kind}: {bits:5.2f} bits, perplexity {perplexity_of(logits[kind]):.2f}, KL {kl:.1e}")
ratio = float(apart["fp8"].mean() / apart["int8"].mean())
guess_kinds.compare(f"int8's KL is {ratio:.0f} times smaller", correct=guess_kinds.options[0])

# %%
mean_kl = {kind: float(apart[kind].mean()) for kind in apart}
exact_ppl = perplexity_of(logits["fp16"])
print("int8 < fp8 < int4:", mean_kl["int8"] < mean_kl["fp8"] < mean_kl["int4"])
print("perplexity moves by less than 2 %:",
      all(abs(perplexity_of(logits[k]) / exact_ppl - 1) < 0.02 for k in KINDS))  # fmt: skip
assert 3 * mean_kl["int8"] < mean_kl["fp8"] and mean_kl["fp8"] < mean_kl["int4"]

# %% [markdown]
# Errors do not grow with the context here: attention *averages* over values, and over their
# errors. And int8 wins clearly. With a scale of its own for every token, and no channel much louder
# than the rest, 255 even levels are closer together than E4M3's eight per power of two.

# %% [markdown]
# ## INT8 counts from the largest, FP8 from each number
#
# An int8 step is a fraction of the *scale*: one loud channel, and the quiet ones get few levels. An
# FP8 step is a fraction of the *number*. Take a key of 64 channels, make one louder, and look at
# the other 63.

# %%
guess_loud = predict(
    "One channel is 256 times louder. In int8 the other 63 channels come back",
    ["nearly as well as before", "at half the decibels", "as zeros, nearly all"],
)

# %%
louder = [2.0**power for power in range(0, 18)]
quiet_db = pictures.errors_beside_a_loud_channel(louder)
fig, ax = figures.new(size=(6.8, 3.4))
for name, marker in (("int8", "o"), ("fp8", "s")):
    ax.plot(louder, quiet_db[name], marker=marker, label=name)
ax.set(xscale="log", xlabel="how much louder one channel is",
       ylabel="SQNR of the other 63 (dB)")  # fmt: skip
ax.set_xscale("log", base=2)
ax.legend()
figures.show(fig, alt="int8 starts at 43 dB and loses 6 with every doubling, to 0 at 256; fp8 "
             "stays at 31 dB until the loud channel is several thousand times louder.")  # fmt: skip

# %%
drop = (quiet_db["int8"][1] - quiet_db["int8"][5]) / 4
guess_loud.compare(f"{quiet_db['int8'][8]:.1f} dB", correct=guess_loud.options[2])
print(f"int8 loses {drop:.1f} dB with each doubling")
print("fp8 is the same from 1 to 1024 times:", quiet_db["fp8"][0] - quiet_db["fp8"][10] < 0.5)
print("and ahead from a factor of 4 on:", quiet_db["fp8"][3] > quiet_db["int8"][3])
assert 5.5 < drop < 6.5 and quiet_db["fp8"][0] - quiet_db["fp8"][10] < 0.5

# %% [markdown]
# So FP8 is worse than int8 on calm data and much better on wild data. It spends 4 of 8 bits on the
# exponent: a scale of its own for every number, so to say. Which are keys?

# %% [markdown]
# ## Keys are not values
#
# Keys and values of one head. In large models a few key channels are loud in *every* token (Liu et
# al. 2024), while values have no such channels. The bundled model is small and has little of it.
# So we plant it.

# %%
PAIRS = (0, 1)
loud_model = plant_in_keys(model, factor=8.0, pairs=PAIRS)
loud_logits = cached_logits(loud_model, ids[:1, :64])
same = torch.allclose(loud_logits, cached_logits(model, ids[:1, :64]), rtol=0, atol=1e-3)
print("the same logits:", same)
assert same

# %% [markdown]
# `plant_in_keys` multiplies a key channel by 8 and divides the query's by 8; their product does not
# see it. (Rotary embedding turns channels in pairs, so both of a pair get the factor.)

# %%
caches = {}
for name, network in (("as trained", model), ("planted", loud_model)):
    caches[name] = KVCache.for_model(network, "fp16", CONTEXT)
    cached_logits(network, ids[:1], lambda _, kept=caches[name]: TransformersCache(kept))
layer = len(caches["planted"].layers) // 2
maps = {f"keys, {name}": cache.keys(layer)[0, 0, :128] for name, cache in caches.items()}
maps["values"] = caches["planted"].values(layer)[0, 0, :128]
figures.show(
    pictures.heat_maps(maps),
    alt="Magnitudes of 128 tokens by 64 channels: keys as trained are uneven by channel; planted "
    "ones have columns that are bright in every token; values have none that stand out.",
)


# %%
def unevenness(x):
    """The loudest channel's mean magnitude, over the middle channel's."""
    loudness = x.abs().mean(0)
    return float(loudness.max() / loudness.median())


uneven = {name: unevenness(x) for name, x in maps.items()}
print("keys more uneven by channel than values:", uneven["keys, as trained"] > uneven["values"])
assert uneven["keys, planted"] > 2 * uneven["values"]

# %% [markdown]
# A range along the *token* must hold loud and quiet channels at once; along the *channel*, over a
# run of tokens, it holds one. At 2 bits that must show.

# %%
guess_axis = predict(
    "Planted keys in 2 bits: the KL is larger by token than by channel, by a factor of",
    ["under 2", "2 to 5", "over 5"],
)


# %%
def exactly(x):
    """No rounding."""
    return x


def kl_of(network, round_keys, round_values):
    """Mean KL from exact keys and values, first sequence."""
    first = ids[:1]
    got = cached_logits(
        network, first, lambda _: TransformersCache(RoundedCache(round_keys, round_values))
    )
    return float(token_divergences(logits["fp16"][:1], got).mean())


by = {axis: partial(round_along, bits=2, by=axis, size=32) for axis in ("channel", "token")}
table = {}
for axis, rounding in by.items():
    table["keys, as trained", axis] = kl_of(model, rounding, exactly)
    table["keys, planted", axis] = kl_of(loud_model, rounding, exactly)
    table["values", axis] = kl_of(model, exactly, rounding)

# %% tags=["nbval-ignore-output"]
print(f"{'KL at 2 bits':20}{'by channel':>12}{'by token':>12}")
for what in ("keys, as trained", "keys, planted", "values"):
    print(f"{what:20}{table[what, 'channel']:12.3f}{table[what, 'token']:12.3f}")
ratio = table["keys, planted", "token"] / table["keys, planted", "channel"]
guess_axis.compare(
    f"{ratio:.1f}", correct=guess_axis.options[0 if ratio < 2 else 1 if ratio < 5 else 2]
)

# %%
bars = ("keys, as trained", "keys, planted", "values")
fig, ax = figures.new(size=(6.8, 3.0))
for shift, axis in ((-0.2, "channel"), (0.2, "token")):
    heights = [table[what, axis] for what in bars]
    ax.bar(np.arange(3) + shift, heights, width=0.36, label=f"by {axis}")
ax.set(ylabel="KL at 2 bits (nats)", xticks=range(3), xticklabels=bars)
ax.legend()
figures.show(fig, alt="Bars of KL at 2 bits: planted keys by token stand far above all others; "
             "keys by channel are the same planted or not; values do not care.")  # fmt: skip
planted, trained = table["keys, planted", "channel"], table["keys, as trained", "channel"]
print("by channel a loud channel costs nothing:", abs(planted / trained - 1) < 0.05)
assert abs(planted / trained - 1) < 0.05 and ratio > 2

# %% [markdown]
# For values the axes differ little, and by token is practical: a token's range is known at once. By
# channel a run must be complete first, so the newest keys wait in float16. That is KIVI, and our
# `int4` cache: keys by channel in runs of 32, values by token in groups of 32.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.3 · Keys by channel, values by token
#
# *15 minutes, difficulty 3 of 5.* Both are [tokens, dim]. Keys: one range for each channel over
# each whole run of `size` tokens; those behind the last whole run stay exact. Values: one range for
# each `size` neighbours of a token. `hint("10.3")`, `reveal("10.3")`.


# %% tags=["exercise-10.3"]
def round_kv(keys, values, bits, size):
    """(keys, values) rounded to `bits` bits; both float [tokens, dim], as are the results.

    Keys: one range for each channel over a run of `size` tokens; tokens behind the last whole
    run stay as they are. Values: one range for each `size` neighbours of a token.
    A range has 2**bits levels from its minimum to its maximum.
    """
    ...


check("10.3", round_kv)

# %% [markdown]
# ## Pages
#
# A server does not know how long an answer will be. If it reserves the longest for everyone, most
# of the memory lies empty. **Paged attention** cuts the memory into pages of a few tokens, and a
# table says which page holds which tokens, as an operating system does.

# %%
guess_pages = predict(
    "1024 slots, answers of up to 128 tokens, most of them shorter. How much of the memory holds "
    "tokens if the longest is reserved for each?",
    ["over 80 %", "40 to 80 %", "under 40 %"],
)

# %%
reserving, paging = server.moments(0), server.moments(16)
share = server.mean(reserving, "used") / server.SLOTS
guess_pages.compare(f"{share:.0%}", correct=guess_pages.options[2])
assert share < 0.4

# %%
box = server.PageExplorer()
figures.show_widget(
    box,
    alt="Two maps of a memory: long grey runs, reserved but empty; beside it small pages, nearly "
    "all in colour. Sliders for time and page size.",
)

# %%
stores = {"longest reserved": reserving, "length known": server.exact_moments()}
stores |= {f"pages of {size}": server.moments(size) for size in (64, 16, 4, 1)}
used, empty, free = [], [], []
for run in stores.values():
    tokens_held, kept = (100 * server.mean(run, w) / server.SLOTS for w in ("used", "reserved"))
    used.append(tokens_held), empty.append(kept - tokens_held), free.append(100 - kept)
fig, ax = figures.new(size=(7.6, 3.2))
places, left = np.arange(len(stores))[::-1], np.zeros(len(stores))
for part, name, colour in ((used, "tokens", figures.PALETTE[0]), (empty, "reserved, empty",
                           "#bdbdbd"), (free, "free", "#f0e442")):  # fmt: skip
    ax.barh(places, part, left=left, color=colour, label=name)
    left = left + part
ax.set(yticks=places, yticklabels=list(stores), xlabel="share of the memory (%)")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
figures.show(fig, alt=f"Bars: {used[0]:.0f} % of the memory holds tokens with the longest "
             f"reserved, {used[1]:.0f} % with lengths known, {used[3]:.0f} % with pages of 16, "
             f"{used[5]:.0f} % with pages of one.")  # fmt: skip

# %%
print(f"{'':18}{'run at a time':>14}{'answers done':>14}")
for name, run in stores.items():
    print(f"{name:18}{server.mean(run, 'running'):14.1f}{run[-1].done:14}")
gain = server.mean(paging, "running") / server.mean(reserving, "running")
print(f"pages of 16 serve {gain:.1f} times as many at a time")
assert gain > 2

# %% [markdown]
# **Reserved, empty** is *internal* fragmentation: kept for tokens that may come. **Free, in
# pieces** is *external*: "length known" has free slots, but no gap long enough. Pages leave only a
# sequence's last one part empty. Smaller pages waste less, but make longer tables; 16 is common.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.4 · A page table grows
#
# *10 minutes, difficulty 2 of 5.* A sequence of `length` tokens holds `pages`, and `count` tokens
# come. Take new pages from the end of `free`, only when needed. Raise ValueError where there are
# too few. `hint("10.4")`, `reveal("10.4")`.


# %% tags=["exercise-10.4"]
def extend(pages, length, count, free, page_size):
    """(pages, free) after `count` more tokens: lists of page numbers.

    pages: the pages of a sequence of `length` tokens, in order. free: the pool's free pages;
    take from its end. Raise ValueError if there are too few.
    """
    ...


check("10.4", extend)

# %% [markdown]
# **Shared prompts.** Two answers to one prompt share its pages. The first of them that writes into
# the half-full last page gets a copy of that page; all others stay shared.

# %%
paged = PagedCache(pages=16, page_size=4, kv_heads=2, head_dim=64)
paged.tables.add("prompt")
paged.append("prompt", *torch.randn(2, 2, 10, 64))
for answer in ("a", "b", "c"):
    paged.tables.fork("prompt", answer)
    paged.append(answer, *torch.randn(2, 2, 1, 64))
for name, sequence in paged.tables.sequences.items():
    print(f"{name:7}pages {sequence.pages}, {sequence.length} tokens")
shared = 16 - paged.tables.pool.free
print(f"{shared} pages instead of {4 * paged.tables.pages_for(11)}")
assert shared == 6

# %% [markdown]
# Does attention notice that its tokens lie scattered? The same tokens, in one piece:

# %%
slots = paged.tables.slots("b")
in_a_row = paged.memory[:, slots].transpose(1, 2)
one_piece = attend_floats(query, in_a_row[0][None], in_a_row[1][None], 64**-0.5)
print("slots of b:", slots)
print("the same attention:", torch.equal(paged.attend("b", query[0]), one_piece[0]))
assert torch.equal(paged.attend("b", query[0]), one_piece[0])

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.5 · Pages come back
#
# *8 minutes, difficulty 2 of 5.* A sequence is done. `readers` counts, for each page of the pool,
# the sequences that read it. Give back what nobody reads any more. `hint("10.5")`,
# `reveal("10.5")`.


# %% tags=["exercise-10.5"]
def release(pages, readers, free):
    """(readers, free) after a sequence is done.

    pages: its pages. readers: for each page of the pool, how many sequences read it. free: the
    pool's free pages; append to it, in the order of `pages`.
    """
    ...


check("10.5", release)

# %% [markdown]
# ## FP8 for weights and activations
#
# Newer chips multiply FP8 numbers directly, at up to twice the 16-bit rate. Both operands need a
# scale, only so that they neither overflow (beyond 448) nor vanish. How exact must it be?

# %%
guess_scale = predict(
    "Your scale is 100 times too large. In FP8 that costs",
    ["nothing to speak of", "half the decibels", "everything"],
)

# %%
factors = [2.0**power for power in range(-4, 18)]
scale_db = pictures.errors_of_wrong_scales(factors)
fig, ax = figures.new(size=(6.8, 3.4))
for name, marker in (("int8", "o"), ("fp8", "s")):
    ax.plot(factors, scale_db[name], marker=marker, label=name)
ax.axvline(1, color="black", linewidth=1, linestyle=":")
ax.set_xscale("log", base=2)
ax.set(xlabel="scale, over the one that just covers the tensor", ylabel="SQNR (dB)")
ax.legend()
figures.show(fig, alt="int8 peaks at the right scale and loses 6 dB with every doubling; fp8 is "
             "flat for twelve doublings. Below 1 both are clipped and fall alike.")  # fmt: skip

# %%
at = factors.index(128.0)
lost = scale_db["fp8"][factors.index(1.0)] - scale_db["fp8"][at]
guess_scale.compare(f"{lost:.1f} dB at 128 times", correct=guess_scale.options[0])
print("int8 loses", f"{scale_db['int8'][factors.index(1.0)] - scale_db['int8'][at]:.0f} dB there")
print("too small by 16 ruins both:", max(scale_db[n][0] for n in scale_db) < 5)
assert lost < 0.1 and scale_db["int8"][at] < 5

# %% [markdown]
# Too large is harmless in FP8, too small is not. So one static scale per tensor, with a margin,
# will do. (*Delayed scaling* in FP8 training takes the maximum of past steps.) E5M2 has more range
# still and one bit of mantissa less; it is for gradients.

# %% [markdown]
# Now on a model: weights and inputs of every linear layer, one **static** scale for each input. The
# patient is the model of chapter 04, whose norms have three channels 128 times louder.

# %%
calibration = torch.tensor(
    tokenizer(load_corpus("stdlib-prose", "calibration").text[:6000], verbose=False)["input_ids"]
)[:1024].reshape(4, 256)
width = model.get_input_embeddings().weight.shape[1]
sick = plant(model, pick_channels(width, 3, seed=0), factor=128.0).model
first = ids[:1]
exact = cached_logits(model, first)
formats = {"int8": with_quantized_activations, "fp8": with_float8}
w8a8 = {}
for name, make in formats.items():
    for who, network in (("calm", model), ("loud", sick)):
        w8a8[name, who] = cached_logits(make(network, "static", calibration=calibration), first)

# %% tags=["nbval-ignore-output"]
print(f"floating point: {perplexity_of(exact, first):.2f}")
for (name, who), got in w8a8.items():
    print(f"{name}, {who} channels: perplexity {perplexity_of(got, first):8.2f}, "
          f"KL {float(token_divergences(exact, got).mean()):.4f}")  # fmt: skip

# %%
kl8 = {key: float(token_divergences(exact, got).mean()) for key, got in w8a8.items()}
print("loud channels ruin static int8:", kl8["int8", "loud"] > 20 * kl8["int8", "calm"])
print("and leave fp8 as it was, within a factor of 2:",
      kl8["fp8", "loud"] < 2 * kl8["fp8", "calm"])  # fmt: skip
assert kl8["int8", "loud"] > 20 * kl8["int8", "calm"]
assert kl8["fp8", "loud"] < 2 * kl8["fp8", "calm"]

# %% [markdown]
# No SmoothQuant, no split, no rotation: a format did it. The price is accuracy on calm data, and a
# chip that has FP8 units. Where it has not, FP8 still halves the *bytes* of weights: `fp8_linear`
# of labkit reads codes, and multiplies floats.

# %%
x, w = torch.randn(3, 64), torch.randn(48, 64)
stored = Float8Tensor.quantize(w)
codes, scale = quantize_float8(x)
product = fp8_linear(codes.float(), stored) * scale
plain = (codes.float() * scale) @ stored.dequantize().T
print("as the dequantized product:", torch.allclose(product, plain, rtol=1e-4, atol=1e-3))
print(f"against floats: {sqnr_db(x @ w.T, product):.0f} dB at {stored.bits_per_weight:.1f} bits")

# %% [markdown] tags=["exercise-text"]
# ### Exercise 10.6 · A product in FP8
#
# *12 minutes, difficulty 3 of 5.* A static scale for x from calibration, a scale for each output
# channel of w. `cast` rounds to E4M3 and turns what is too large into NaN, so saturate first. A
# channel of zeros must stay zeros. `hint("10.6")`, `reveal("10.6")`.


# %% tags=["exercise-10.6"]
def fp8_product(x, w, x_amax):
    """x @ w.T with E4M3 codes on both sides: float32 [n, out].

    x: float [n, in]; its one scale maps x_amax, found in calibration, to 448. w: float
    [out, in]; each output channel's largest magnitude is mapped to 448.
    """

    def cast(t):
        """t in E4M3, as chips without saturation do it: what is too large becomes NaN."""
        return torch.where(t.abs() > 464, math.nan, t.to(torch.float8_e4m3fn).float())

    ...


check("10.6", fp8_product)

# %% [markdown]
# ## The whole model
#
# Weights and cache together, for 64 sequences of the full context: as floats, in FP8, and in 4
# bits. Perplexity with both at work.

# %%
SEQUENCES = 64
four_bits, _ = quantize_model(model, QuantScheme(4, False, "group", group_size=32))
recipes = {
    "16 bits, fp16 cache": (model, 16, "fp16"),
    "fp8, fp16 cache": (with_float8(model), 8, "fp16"),
    "fp8, fp8 cache": (with_float8(model), 8, "fp8"),
    "int4, fp16 cache": (four_bits, 4.625, "fp16"),
    "int4, int8 cache": (four_bits, 4.625, "int8"),
    "int4, int4 cache": (four_bits, 4.625, "int4"),
}
count = sum(p.numel() for p in model.parameters())
per_cache = {k: KVCache.for_model(model, k, CONTEXT, SEQUENCES).nbytes / 2**20 for k in KINDS}
rows = {}
for name, (network, bits, kind) in recipes.items():
    ppl = perplexity_of(with_cache(network, kind, first), first)
    rows[name] = (count * bits / 8 / 2**20, per_cache[kind], ppl)

# %% tags=["nbval-ignore-output"]
figures.show(
    pictures.whole_model(rows, SEQUENCES),
    alt="MiB of weights and cache for six recipes: 4-bit weights leave a cache far larger than "
    "themselves, until it is quantized too; perplexity hardly moves.",
)

# %%
whole = {name: row[0] + row[1] for name, row in rows.items()}
print("4-bit weights alone save less than half:",
      whole["int4, fp16 cache"] > 0.5 * whole["16 bits, fp16 cache"])  # fmt: skip
print("with a 4-bit cache less than two fifths are left:",
      whole["int4, int4 cache"] < 0.4 * whole["16 bits, fp16 cache"])  # fmt: skip
worst = max(row[2] for row in rows.values()) / rows["16 bits, fp16 cache"][2]
print("perplexity stays within 10 %:", worst < 1.1)
assert worst < 1.1

# %% [markdown]
# ## What breaks this
#
# **One loud channel, int8 by token.** The larger the factor, the fewer levels for the rest. FP8 and
# keys by channel do not mind.

# %%
guess_break = predict(
    "Key channels 256 times louder. Which cache still works?",
    ["int8 by token", "fp8 by token and int4 by channel", "none of them"],
)

# %%
broken = {}
for factor in (16.0, 256.0):
    patient = plant_in_keys(model, factor, pairs=PAIRS)
    for kind in ("int8", "fp8", "int4"):
        got = with_cache(patient, kind, first)
        broken[kind, factor] = float(token_divergences(logits["fp16"][:1], got).mean())

# %%
fig, ax = figures.new(size=(6.8, 3.2))
for kind, colour in zip(("int8", "fp8", "int4"), figures.PALETTE[1:], strict=False):
    line = [mean_kl[kind], broken[kind, 16.0], broken[kind, 256.0]]
    ax.plot([1, 16, 256], line, marker="o", color=colour, label=kind)
ax.set(xscale="log", yscale="log", xlabel="how much louder the planted key channels are",
       ylabel="KL from float16 (nats)")  # fmt: skip
ax.set_xticks([1, 16, 256], ["1", "16", "256"])
ax.legend()
figures.show(fig, alt="KL against the factor: int8 climbs from lowest to highest by thousands of "
             "times; fp8 and int4 are level.")  # fmt: skip
guess_break.compare("fp8 and int4", correct=guess_break.options[1])
assert broken["int8", 256.0] > 20 * broken["int4", 256.0] > 0
assert broken["fp8", 256.0] < 5 * mean_kl["fp8"]

# %% [markdown]
# The cure is the planting, backwards: move the loud channel from the key, which is stored, into the
# query, which is not (SmoothAttention).

# %%
cured = plant_in_keys(plant_in_keys(model, 256.0, PAIRS), 1 / 256, PAIRS)
same = all(torch.equal(a, b) for a, b in zip(cured.parameters(), model.parameters(), strict=True))
print("every weight as it was:", same)
assert same

# %% [markdown]
# **float16 itself.** Its range ends at 65504. A cache must say so instead of keeping infinities,
# which turn attention into NaN.

# %%
small = KVCache("fp16", layers=1, kv_heads=1, head_dim=8, capacity=4)
try:
    small.append(0, torch.full((1, 1, 1, 8), 1e5), torch.ones(1, 1, 1, 8))
except NonFiniteError as error:
    print(error)
print("nothing was kept:", small.length == 0)

# %% [markdown]
# **A static FP8 scale from calm text.** Calibrated on an eighth of the range that comes, with
# saturation and without:

# %%
x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
quiet = x.abs().max() / 8 / 448
clipped, _ = quantize_float8(x, scale=quiet)
print(f"clipped: {sqnr_db(x, clipped.float() * quiet):.1f} dB; with a scale that covers x: "
      f"{sqnr_db(x, pictures.round_float8(x)):.1f} dB")  # fmt: skip
assert sqnr_db(x, clipped.float() * quiet) < 15

# %% [markdown]
# **A pool that is empty.** All running sequences may need a page in the same step. A server keeps
# some free, and evicts whoever came last; a bare allocator can only refuse, as a whole.

# %%
try:
    paged.append("a", *torch.randn(2, 2, 60, 64))
except PoolError as error:
    print(error)
print("a has still", paged.tables.sequences["a"].length, "tokens")

# %% [markdown]
# ## When to choose what
#
# | cache | bits, head dim 128 | choose it |
# |---|---|---|
# | float16 | 16 | short contexts, few sequences |
# | int8, by token | 8.25 | calm keys, no FP8 units |
# | FP8, by token or static | 8 to 8.25 | default on newer GPUs |
# | 4 bits, keys by channel | 5 | long contexts, after a test |
#
# Perplexity shows little. Test retrieval from far back.

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **Why does the KV cache dominate at long context, and what do you do about it?**
#
# <details><summary>A model answer</summary>
#
# Weights are a constant; the cache grows with context times sequences: 2 · layers · KV heads · head
# dim · bytes for each token. Llama-2-7B leaves 512 KiB a token in 16 bits, so some 7000 tokens, in
# all sequences together, equal its weights in 4 bits. And while weights are read once for a whole
# batch, every sequence reads its own cache at every step.
#
# In order: a model with fewer KV heads, as GQA divides by 4 or 8; pages, so that nothing is
# reserved in vain; 8 bits, half of it; 4 bits with keys by channel; sharing prefixes; windows or
# eviction, which change what the model can see. Beyond that, offloading, or more GPUs.
#
# </details>

# %% [markdown] tags=["interview"]
# **What does FP8 change against INT8?**
#
# <details><summary>A model answer</summary>
#
# Same bytes. INT8 has even steps relative to the scale: excellent if the largest value is a few
# times the typical one, some 12 dB better than E4M3 on Gaussian data. But every doubling of an
# outlier costs 6 dB for all who share its scale.
#
# E4M3 has three bits of mantissa at every magnitude, over some 15 powers of two: about 31 dB
# whatever the distribution. So scales may be coarse, static, and a bit too large; outliers need no
# cure. What it needs: saturation at 448, scales never too small, hardware with FP8 units (or the
# bytes are all you win).
#
# E5M2 trades a mantissa bit for range and serves gradients.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why keys per channel and values per token?**
#
# <details><summary>A model answer</summary>
#
# Keys of large models have a few channels that are loud in every token. A range by token would have
# to hold them together with the quiet ones; by channel each has a range of its own. Values have no
# such channels, and the output is a mixture of tokens: an error of one token's value is weighted
# with its attention, so it should stay with that token.
#
# By token is also easier: the range is known at once. By channel needs a run of tokens, so the
# newest wait in 16 bits. At 8 bits by token is mostly fine for both; below, it decides.
#
# Or move the loud channels into the queries, or rotate keys and queries, before quantizing.
#
# </details>

# %% [markdown] tags=["interview"]
# **Explain paged attention. What does it cost?**
#
# <details><summary>A model answer</summary>
#
# Memory for keys and values is cut into pages of, say, 16 tokens. Each sequence has a table from
# its token positions to pages; it takes a page from a free list when the last is full. Nothing is
# reserved for tokens that may never come, and free pages fit anybody: internal waste is at most a
# page less one token for each sequence, external waste is zero. Several times as many sequences run
# at a time, and throughput follows, since weights are shared by a larger batch.
#
# Pages are counted: equal prefixes share them, with a copy on the first write.
#
# Cost: kernels follow a table for every read, the scheduler must handle an empty pool by evicting
# and recomputing or swapping, and reference counts must be right, or memory leaks.
#
# </details>

# %% [markdown] tags=["interview"]
# **With a quantized cache, long documents fail though perplexity is fine. What do you check?**
#
# <details><summary>A model answer</summary>
#
# Perplexity is an average over mostly local predictions, so a few broken retrievals vanish in it.
# I compare KL by position, and a retrieval test, against the 16-bit cache.
#
# Then one thing at a time: keys only, values only, layer by layer. Usually it is keys, in the first
# or last layers, with loud channels: look at a heat map. Check the axis, the group size, whether
# scales are static from short text and saturate, whether rotary embedding comes before or after
# quantization, whether the first tokens (attention sinks) and the newest are kept in 16 bits.
#
# Repairs: FP8 or per-channel for keys, more bits for keys than values, those layers in 16 bits.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Kwon et al. 2023](https://arxiv.org/abs/2309.06180): PagedAttention
# - [Liu et al. 2024](https://arxiv.org/abs/2402.02750): KIVI
# - [Hooper et al. 2024](https://arxiv.org/abs/2401.18079): KVQuant, keys before rotation
# - [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245): GQA; and
#   [Shazeer 2019](https://arxiv.org/abs/1911.02150): MQA
# - [Lin et al. 2024](https://arxiv.org/abs/2405.04532): QServe, SmoothAttention
# - [Micikevicius et al. 2022](https://arxiv.org/abs/2209.05433): FP8 formats
# - [Kuzmin et al. 2022](https://arxiv.org/abs/2208.09225): FP8 against INT8
