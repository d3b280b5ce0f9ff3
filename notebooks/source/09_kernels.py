# %% [markdown]
# # 09 · Kernels
#
# **Why is 4-bit faster, and when is it not?**
#
# **You will be able to**
# - count operations and bytes of a layer, of prefill and of decode, and say what sets the pace
# - measure your machine's roofline, and predict tokens per second from it
# - go from a triple loop to a packed, vectorised 4-bit kernel, and explain every step
# - read and write the same kernel in Triton, with masks that keep it inside its matrix
# - predict the batch size from which 4 bits stop paying
#
# **Time:** 100 minutes · **Before this:** [03_per_channel](03_per_channel.ipynb)

# %%
import logging
import math
import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels run on the CPU

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from labkit.core.errors import NonFiniteError
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape

# %%
from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course import widgets_09_pictures as pictures
from labkit.course.prediction import predict
from labkit.course.widgets_09_roofline import RooflineExplorer
from labkit.data import load_corpus
from labkit.evaluate.latency import latency
from labkit.evaluate.perplexity import perplexity
from labkit.evaluate.roofline import (
    Roof,
    crossing_tokens,
    decode_work,
    linear_work,
    prefill_work,
    product_rate,
    read_bandwidth,
)
from labkit.evaluate.shortest import shortest

# %%
from labkit.kernels import Int4Panels, Int4Weight, int4_linear
from labkit.kernels.cpu.read import STEP, read
from labkit.models import load
from labkit.models.apply import map_weights
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import rtn
from labkit.quantize.gguf_threads import at_most

logging.getLogger("transformers").setLevel(logging.ERROR)

# %% [markdown]
# ## Count before you measure
#
# A processor fetches bytes and computes, both at once. Whichever takes longer sets the pace, so
# count both. A layer multiplies x [tokens, in] with a weight [out, in]:
#
# - operations: a multiplication and an addition for every weight and token, 2 · out · in · tokens
# - bytes: weight and x are read, y is written

# %%
guess_intensity = predict(
    "A 4096 x 4096 layer in 16 bits, one token: operations for each byte from memory",
    ["about 1", "about 16", "about 4096"],
)

# %%
operations = 2 * 4096 * 4096
nbytes = 2 * 4096 * 4096 + 2 * (4096 + 4096)
print(f"{operations:,} operations, {nbytes:,} bytes: {operations / nbytes:.3f} a byte")
guess_intensity.compare(f"{operations / nbytes:.3f}", correct="about 1")

# %% [markdown]
# That quotient is the **arithmetic intensity**. Two operations for each weight, two bytes a weight:
# one. A prompt of 512 tokens uses each weight 512 times after reading it once. Fewer bits raise the
# intensity, too, since they make the bytes fewer.

# %%
print("operations per byte     1 token   8 tokens   64 tokens  512 tokens")
for bits in (16, 8, 4.125):
    row = [linear_work(4096, 4096, n, bits).intensity for n in (1, 8, 64, 512)]
    print(f"{bits:6g} bits        " + "".join(f"{value:11.3g}" for value in row))

# %% [markdown]
# (4.125: a 4-bit code and its share of a float16 scale for 128 of them.)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.1 · Operations per byte
#
# *8 minutes, difficulty 2 of 5.* The layer's weight [rows, columns] has codes of `bits` bits, and
# every row a float16 scale for each `group_size` columns. x and y are float16. Everything crosses
# the memory's border once. Return operations per byte. `hint("09.1")`, `reveal("09.1")`.


# %% tags=["exercise-09.1"]
def intensity(rows, columns, tokens, bits, group_size):
    """Operations per byte of x [tokens, columns] times a weight [rows, columns]."""
    ...


check("09.1", intensity)

# %% [markdown]
# A whole model is such layers one after another, and attention, which reads the cache of keys and
# values. **Prefill** reads a prompt in one pass. **Decode** writes the answer: one pass a token.
# Llama 2 7B after 512 tokens:

# %%
llama = MODEL_SHAPES["llama-2-7b"]
for bits in (16, 8.004, 4.125):
    read_it, write_it = prefill_work(llama, 512, bits), decode_work(llama, 512, 1, bits)
    print(f"{bits:6g} bits: prefill {read_it.intensity:5.0f} operations per byte, "
          f"decode {write_it.intensity:4.2f}; {write_it.nbytes / 1e9:5.2f} GB a token")  # fmt: skip

# %% [markdown]
# ## The roof of your machine
#
# Work of intensity I runs at most at
#
# $$ \text{operations per second} = \min(\text{peak},\; I \cdot \text{bandwidth}) $$
#
# Drawn on logarithmic axes that is a slope and a flat top: a roof. Left of the ridge, at
# peak / bandwidth, memory sets the pace; right of it arithmetic does.

# %%
explorer = RooflineExplorer()
figures.show_widget(
    explorer, alt="A roofline with a layer's points on it; sliders for machine, bits and tokens."
)

# %% [markdown]
# Raise the tokens and watch the points leave the slope. Which machine needs the largest batch
# before its arithmetic is busy?

# %%
ridges = {}
for machine in explorer.machine.options:
    explorer.machine.value = machine
    ridges[machine] = explorer.roof.ridge
    print(f"{machine:32} ridge at {explorer.roof.ridge:5.1f} operations per byte")
explorer.bits.value = "4 bits, groups of 128"
print(f"one token, 4 bits instead of 16: {explorer.speedup:.2f} times as fast at best")
assert explorer.speedup > 3.8 and max(ridges.values()) > 20 * min(ridges.values())

# %% [markdown]
# Makers print both figures. Yours can be measured: the time of a vectorised read of more bytes than
# any cache holds, and of a product of two large matrices, in float32 and in int8.

# %%
guess_ridge = predict(
    "Your machine, float32: its ridge lies at how many operations per byte?",
    ["under 2", "2 to 20", "over 20"],
)

# %% tags=["nbval-ignore-output"]
THREADS = torch.get_num_threads()
bandwidth = read_bandwidth()
peak, peak_int8 = product_rate("float32"), product_rate("int8")
roof, roof_int8 = Roof(bandwidth, peak), Roof(bandwidth, peak_int8)
print(f"{THREADS} threads: {bandwidth / 1e9:.1f} GB/s")
print(f"float32: {peak / 1e9:.0f} billion operations a second, ridge at {roof.ridge:.1f}")
print(f"int8: {peak_int8 / 1e9:.0f} billion operations a second, ridge at {roof_int8.ridge:.1f}")
assert min(bandwidth, peak, peak_int8) > 1e8
guess_ridge.compare(
    f"{roof.ridge:.1f}",
    correct=guess_ridge.options[0 if roof.ridge < 2 else 1 if roof.ridge < 20 else 2],
)

# %% [markdown]
# Already a prediction: a decoder cannot write tokens faster than its weights can be read.

# %% tags=["nbval-ignore-output"]
print("tokens per second at most, on this machine, 512 tokens of context")
for name in ("qwen2.5-0.5b", "llama-3.2-3b", "llama-2-7b", "llama-2-70b"):
    row = [1 / roof.seconds(decode_work(MODEL_SHAPES[name], 512, 1, b)) for b in (16, 8.004, 4.125)]
    print(f"{name:14} 16 bits {row[0]:6.2f}   8 bits {row[1]:6.2f}   4 bits {row[2]:6.2f}")
    assert row[0] <= row[1] <= row[2]

# %% [markdown]
# ## From a triple loop to 4 bits
#
# One layer, 4096 × 4096, one token, one thread at first. Every rung gives the same y, or the y
# of the same 4-bit weight. We count nanoseconds a weight. In a model the next weights are never
# in the cache, so calls take turns on pieces, or copies, that no cache holds together.

# %%
torch.manual_seed(0)
W, x = torch.randn(4096, 4096) * 0.02, torch.randn(1, 4096)
w, v, y = W.numpy(), x.numpy(), np.zeros((1, 4096), np.float32)
exact = (x.double() @ W.double().T).numpy()
torch.set_num_threads(1)
rungs = {}


def right(found, wanted):
    """Whether y agrees with the product in float64, but for rounding."""
    return bool(np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted))


# %%
def pace(calls, rows=4096):
    """Nanoseconds a weight, of the shortest pass through all calls: no piece is cached by luck."""
    whole = shortest([lambda: [call() for call in calls]], seconds=0.5)
    return 1e9 * whole / (len(calls) * rows * 4096)


def rung(name, bits, calls, rows=4096):
    """Time the calls; keep the pace and print it."""
    rungs[name] = (pace(calls, rows), bits)
    print(f"{name:28} {rungs[name][0]:9.3f} ns a weight")


def pieces(kernel, rows):
    """Calls of kernel(x, w, y), a piece of so many rows each."""
    cuts = [slice(first, first + rows) for first in range(0, 4096, rows)]
    return [lambda cut=cut: kernel(v, w[cut], y[:, cut]) for cut in cuts]


# %% [markdown]
# **The definition.** Three loops. In Python, where every number is an object.


# %%
def product(x, w, y):
    """y [tokens, out] = x [tokens, in] @ w [out, in].T"""
    for token in range(x.shape[0]):
        for row in range(w.shape[0]):
            total = np.float32(0)
            for column in range(w.shape[1]):
                total += w[row, column] * x[token, column]
            y[token, row] = total


product(v, w[:8], y[:, :8])
print("right:", right(y[:, :8], exact[:, :8]))

# %% tags=["nbval-ignore-output"]
rung("Python", 32, pieces(product, 4)[:1], rows=4)
assert rungs["Python"][0] > 5

# %% [markdown]
# **Compiled.** Numba translates the same lines to machine code. One addition after another: the sum
# is a chain, and each link takes four clock cycles or so.

# %%
compiled = njit(product)
compiled(v, w, y)
print("right:", right(y, exact))

# %% tags=["nbval-ignore-output"]
rung("compiled", 32, pieces(compiled, 256), rows=256)

# %%
gain = rungs["Python"][0] / rungs["compiled"][0]
print("more than ten times faster than Python:", gain > 10)
assert gain > 10

# %% [markdown]
# **Vectorised.** A register holds 8 or 16 floats, and one instruction multiplies and adds all. The
# compiler may not use that by itself: it would add in another order, and float addition is not
# associative. `fastmath` permits it.

# %%
vectorised = njit(fastmath=True)(product)
vectorised(v, w, y)
print("right, but for the last digits:", right(y, exact))

# %% tags=["nbval-ignore-output"]
rung("vectorised", 32, pieces(vectorised, 256), rows=256)
tables = w.view(np.uint8).reshape(16, -1)  # the same pieces, as bytes
floor32 = pace([lambda t=t: read(t) for t in tables], rows=256)
print(f"reading 4 bytes alone takes {floor32:.3f} ns: {floor32 / rungs['vectorised'][0]:.0%} of it")
assert rungs["vectorised"][0] < rungs["Python"][0] / 10

# %% [markdown]
# If that share is high, the float32 product is finished: no cleverness with arithmetic can help
# while the bytes do not come sooner. **Only fewer bytes can.**

# %% [markdown]
# **One byte a weight.** int8 codes, one scale a row. The scale is a constant of the row, so it
# stays outside of the sum.


# %%
@njit(fastmath=True)
def int8_rows(x, codes, scale, y):
    for row in range(codes.shape[0]):
        total = np.float32(0)
        for column in range(codes.shape[1]):
            total += np.float32(codes[row, column]) * x[column]
        y[row] = scale[row] * total


eight = rtn.quantize(W, QuantScheme(8))
codes8, scale8 = eight.codes.numpy(), eight.scale.float().flatten().numpy()
int8_rows(v[0], codes8, scale8, y[0])
print("right:", right(y[0], (eight.dequantize().double() @ x[0].double()).numpy()))

# %% tags=["nbval-ignore-output"]
copies8 = [codes8.copy() for _ in range(4)]
rung("int8", 8, [lambda c=c: int8_rows(v[0], c, scale8, y[0]) for c in copies8])
assert rungs["int8"][0] < rungs["Python"][0] / 20

# %% [markdown]
# **Half a byte.** Groups of 128, symmetric: weight = scale · (code − 8). Two codes share a byte;
# the obvious way puts neighbours together.

# %%
guess_pairs = predict(
    "4-bit codes, neighbours in one byte, the loop written plainly. Beside int8 it is",
    ["twice as fast: half the bytes", "about as fast", "slower"],
)


# %%
@njit(fastmath=True)
def int4_neighbours(x, packed, scale, y):
    half = packed.shape[1] // scale.shape[1]  # bytes of a group
    for row in range(packed.shape[0]):
        y[row] = 0
        for group in range(scale.shape[1]):
            bytes_ = packed[row, group * half : (group + 1) * half]
            near, total = x[2 * group * half : 2 * (group + 1) * half], np.float32(0)
            for j in range(half):
                total += (np.float32(bytes_[j] & 15) - np.float32(8)) * near[2 * j]
                total += (np.float32(bytes_[j] >> 4) - np.float32(8)) * near[2 * j + 1]
            y[row] += scale[row, group] * total


# %%
INT4 = QuantScheme(4, True, "group", 128, narrow_range=False)
four = rtn.quantize(W, INT4)
codes4, scale4 = (four.codes + 8).to(torch.uint8), four.scale.float().numpy()
neighbours = (codes4[:, ::2] | (codes4[:, 1::2] << 4)).numpy()
exact4 = (four.dequantize().double() @ x[0].double()).numpy()
int4_neighbours(v[0], neighbours, scale4, y[0])
print("right:", right(y[0], exact4))

# %% tags=["nbval-ignore-output"]
copies = [neighbours.copy() for _ in range(8)]
rung("int4, neighbours", 4, [lambda c=c: int4_neighbours(v[0], c, scale4, y[0]) for c in copies])
against = rungs["int4, neighbours"][0] / rungs["int8"][0]
assert rungs["int4, neighbours"][0] < rungs["Python"][0] / 20
guess_pairs.compare(
    f"{against:.1f} times int8's time",
    correct=guess_pairs.options[0 if against < 0.7 else 1 if against < 1.4 else 2],
)

# %% [markdown]
# Half the bytes, and hardly anywhere half the time: what is saved on reading goes into taking
# apart. Part of it is needless. Sixteen bytes, one AND: codes 0, 2, 4, … But sixteen lanes of x
# hold columns 0, 1, 2, … Somebody must shuffle.

# %%
figures.show(
    pictures.layouts(),
    alt="Sixteen codes in eight bytes, twice. With neighbours in a byte one AND gives codes 0, 2, "
    "4 up to 14; with halves in a byte it gives 0 to 7 in order.",
)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.2 · Nibbles in an order that suits lanes
#
# *10 minutes, difficulty 2 of 5.* Cut each row of `codes` (uint8, 0 … 15) into chunks. Byte j of a
# chunk holds its code j in the low four bits, and code j + chunk / 2 in the high ones. Return the
# bytes, uint8 [out, in / 2]. `hint("09.2")`, `reveal("09.2")`.


# %% tags=["exercise-09.2"]
def pack_halves(codes, chunk):
    """uint8 [out, in / 2] of codes uint8 [out, in], 0 … 15; `in` is a multiple of `chunk`."""
    ...


check("09.2", pack_halves)

# %% [markdown]
# `Int4Weight` stores codes so. The loop changes in one place: which x a nibble meets.


# %%
@njit(fastmath=True)
def int4_halves(x, packed, scale, y):
    half = packed.shape[1] // scale.shape[1]
    for row in range(packed.shape[0]):
        y[row] = 0
        for group in range(scale.shape[1]):
            bytes_ = packed[row, group * half : (group + 1) * half]
            near, total = x[2 * group * half : 2 * (group + 1) * half], np.float32(0)
            for j in range(half):
                total += (np.float32(bytes_[j] & 15) - np.float32(8)) * near[j]
                total += (np.float32(bytes_[j] >> 4) - np.float32(8)) * near[half + j]
            y[row] += scale[row, group] * total


# %%
packed = Int4Weight.from_quantized(four)
int4_halves(v[0], packed.codes.numpy(), scale4, y[0])
print("right:", right(y[0], exact4))

# %% tags=["nbval-ignore-output"]
copies = [packed.codes.clone().numpy() for _ in range(8)]
rung("int4, halves", 4, [lambda c=c: int4_halves(v[0], c, scale4, y[0]) for c in copies])
gain = rungs["int4, neighbours"][0] / rungs["int4, halves"][0]
print(f"the same bytes in another order: {gain:.2f} times as fast")
assert rungs["int4, halves"][0] < rungs["Python"][0] / 20

# %% [markdown]
# A compiler can hide some of the shuffling. In a kernel written for the lanes, where a product is
# one instruction, every shuffle costs as much as a product, and the order decides.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.3 · A 4-bit product, group by group
#
# *15 minutes, difficulty 3 of 5.* Now with zero-points. Compute y, [out], from
# `codes` (uint8 [out, in], one a byte), `scale` and `zero` [out, groups] and x [in], without
# writing the weights out: what is constant in a group leaves the sum. `hint("09.3")`,
# `reveal("09.3")`.


# %% tags=["exercise-09.3"]
def group_gemv(codes, scale, zero, x):
    """y [out] = sum of scale * (code - zero) * x; codes uint8 [out, in], x float32 [in].

    scale float32 and zero uint8 are [out, groups]; a group is in / groups neighbours.
    """
    ...


check("09.3", group_gemv)

# %% [markdown]
# **Look-ups.** A byte becomes a float in three or four instructions; a product takes one. But a
# 4-bit code has only sixteen meanings, and sixteen floats fit one AVX-512 register:
#
#     table = (levels - zero) * scale      the group's sixteen weights
#     total += look_up(table, word) * x    eight times, the word shifted by 4 bits
#
# That is labkit's kernel. Other processors lack the instruction.

# %%
y4 = int4_linear(x, packed)
print("right:", right(y4[0].numpy(), exact4))

# %% tags=["nbval-ignore-output"]
weights = [replace(packed, codes=packed.codes.clone()) for _ in range(8)]
rung("int4, look-ups (labkit)", 4, [lambda p=p: int4_linear(x, p) for p in weights])
assert rungs["int4, look-ups (labkit)"][0] < rungs["Python"][0] / 10

# %% [markdown]
# **Integers on both sides.** Round x to int8 as well, one scale for the token (W4A8). One
# instruction (VPDPBUSD on x86) multiplies 64 bytes and adds them by fours into sixteen int32. Its
# first side is unsigned: 4-bit codes are that already, 8-bit codes have to be shifted by 128.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.4 · Products of bytes that do not overflow
#
# *12 minutes, difficulty 3 of 5.* `w_plus` holds int8 weights plus 128, as uint8. Return the exact
# x @ w.T in int32, which means: sum wide enough, and take off what the 128 added. torch multiplies
# int32 matrices with `@`. `hint("09.4")`, `reveal("09.4")`.


# %% tags=["exercise-09.4"]
def int8_product(x, w_plus):
    """int32 [tokens, out]: x @ w.T; x int8 [tokens, in]; w_plus uint8 [out, in] is w + 128."""
    ...


check("09.4", int8_product)

# %%
y48 = int4_linear(x, packed, activation_bits=8)
error = float((y48 - y4).norm() / y4.norm())
print("rounding x to 8 bits changes y by less than 2 %:", error < 0.02)
assert 0 < error < 0.02

# %% tags=["nbval-ignore-output"]
rung("int4 x int8 (labkit)", 4, [lambda p=p: int4_linear(x, p, activation_bits=8) for p in weights])

# %% [markdown]
# **A lane is a row.** A register held neighbours of one row: at its end sixteen sums are folded
# into one, and every group fetches a scale. Put the words of sixteen rows side by side: the x that
# a word meets is then the same for all lanes, nothing is folded, and one product applies sixteen
# scales.

# %%
panels = Int4Panels.from_rows(packed)
y_panels = int4_linear(x, panels, activation_bits=8)
print("the same weights:", torch.equal(panels.dequantize(), packed.dequantize()))
print("the same sums:", right(y_panels[0].numpy(), y48[0].numpy()))
assert right(y_panels[0].numpy(), y48[0].numpy())

# %% tags=["nbval-ignore-output"]
side_by_side = [replace(panels, codes=panels.codes.clone()) for _ in range(8)]
rung("int4 x int8, panels", 4,
     [lambda p=p: int4_linear(x, p, activation_bits=8) for p in side_by_side])  # fmt: skip
tables = [np.ones(packed.nbytes // STEP * STEP, np.uint8) for _ in range(8)]
floor4 = pace([lambda t=t: read(t) for t in tables])
print(f"{'reading the bytes alone':28} {floor4:9.3f} ns a weight")

# %%
whole_way = rungs["Python"][0] / rungs["int4 x int8 (labkit)"][0]
print("from the triple loop, more than a hundred times:", whole_way > 100)
assert whole_way > 100

# %% tags=["nbval-ignore-output"]
figures.show(
    pictures.ladder(rungs, {"reading float32": floor32, "reading 4 bits": floor4}),
    alt="Bars on a logarithmic scale, one a rung, from Python's triple loop down to 4 bits with "
    "8-bit activations, which comes nearest to the time that reading the bytes takes.",
)
assert len(rungs) == 9 and min(floor4, floor32) > 0

# %% [markdown]
# Black bars read four bytes a weight, green one, blue half. float32 stops at its own line, the
# dots. Past it only fewer bytes lead; and they lead there only if unpacking them takes less time
# than the bytes that it saves.

# %% [markdown]
# **Bytes that are on their way.** A processor fetches ahead what a loop will read, unasked; in a
# loop that unpacks, too late. So the panels ask: `ask_ahead` in `labkit/kernels/cpu/addresses.py`,
# 8, 6 and 4 KB before a line is read. Thrice, since requests get lost. That is tuned on Zen 5;
# on Zen 4, asking hurt products of integers.

# %% [markdown]
# **Threads.** The rows are dealt out; nobody waits for anybody. More threads can fetch more bytes,
# up to the memory's limit, so a kernel that computes gains more than one that waits.


# %%
@njit(fastmath=True, parallel=True)
def threaded(x, w, y):
    for row in prange(w.shape[0]):
        total = np.float32(0)
        for column in range(w.shape[1]):
            total += w[row, column] * x[0, column]
        y[0, row] = total


torch.set_num_threads(THREADS)
with at_most(THREADS):
    threaded(v, w, y)
print("right:", right(y, exact))

# %% tags=["nbval-ignore-output"]
with at_most(THREADS):
    rung("vectorised, all threads", 32, pieces(threaded, 512), rows=512)
rung("int4, all threads", 4, [lambda p=p: int4_linear(x, p) for p in weights])
rung("int4 x int8, all threads", 4,
     [lambda p=p: int4_linear(x, p, activation_bits=8) for p in side_by_side])  # fmt: skip
share = pace([lambda t=t: read(t) for t in tables]) / rungs["int4 x int8, all threads"][0]
ratio = rungs["vectorised, all threads"][0] / rungs["int4, all threads"][0]
print(f"4 bits are {ratio:.1f} times as fast as float32")
print(f"reading the bytes alone takes {share:.0%} of the time of 4 x 8 bits")

# %%
same = torch.equal(int4_linear(x, packed), y4)
print("however many threads, the same bits:", same)
assert same

# %% [markdown]
# ## Tokens a second: predict, then measure
#
# Two blocks as a model of about a billion weights has them, random numbers in them; large enough
# that no cache holds them. Every linear layer is replaced by one that keeps packed codes only.


# %%
class PackedLinear(nn.Module):
    """A linear layer that holds 4-bit codes and hands them to the kernel."""

    def __init__(self, weight, bias=None):
        super().__init__()
        scheme = INT4 if weight.shape[1] % 128 == 0 else QuantScheme(4, narrow_range=False)
        self.packed = Int4Weight.from_quantized(rtn.quantize(weight.detach().float(), scheme))
        self.bias, self.activation_bits = bias, 16

    def forward(self, x):
        return int4_linear(x, self.packed, self.bias, activation_bits=self.activation_bits)


def pack(model, layers):
    """Put a PackedLinear in place of each of these layers; returns them."""
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        fitting = PackedLinear(weight_matrix(layer), layer.bias)
        setattr(model.get_submodule(parent), leaf, fitting)
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


# %%
shape = ModelShape("two blocks", 2, 2048, 5632, 32, 4, 64, 1024)
config = LlamaConfig(
    hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
    num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocab,
)  # fmt: skip
torch.manual_seed(0)
blocks = AutoModelForCausalLM.from_config(config).eval()

# %%
PROMPT, NEW = 64, 6
phases = {"float32": latency(blocks, PROMPT, NEW, rounds=2)}
head = {"lm_head": blocks.lm_head}
layers = pack(blocks, linear_layers(blocks) | head)
phases["4 bits"] = latency(blocks, PROMPT, NEW, rounds=2)
for layer in layers:
    layer.activation_bits = 8
phases["4 x 8 bits"] = latency(blocks, PROMPT, NEW, rounds=2)
print("layers packed:", len(layers))
assert len(layers) == 15

# %% tags=["nbval-ignore-output"]
bits_of = {"float32": 32, "4 bits": 4.125, "4 x 8 bits": 4.125}
works, points = {}, {}
for name, found in phases.items():
    bits = bits_of[name]
    works[name] = (prefill_work(shape, PROMPT, bits, 4), decode_work(shape, PROMPT, 1, bits, 4))
    spent = (found.prefill_seconds, found.seconds_per_token)
    best = [(roof_int8 if "x 8" in name else roof).seconds(work) for work in works[name]]
    print(f"{name:11} prefill {spent[0] * 1e3:6.1f} ms, at best {best[0] * 1e3:6.1f};  a token "
          f"{spent[1] * 1e3:6.2f} ms, at best {best[1] * 1e3:6.2f}")  # fmt: skip
    for phase, work, seconds in zip(("prefill", "decode"), works[name], spent, strict=True):
        points[f"{phase}, {name}"] = (work.intensity, work.operations / seconds)
for rung_name, name in (("vectorised, all threads", "float32"), ("int4, all threads", "4 bits"),
                        ("int4 x int8, all threads", "4 x 8 bits")):  # fmt: skip
    work = linear_work(4096, 4096, 1, bits_of[name], 4)
    points[f"one layer, {name}"] = (work.intensity, 2e9 / rungs[rung_name][0])
assert len(points) == 9

# %% tags=["nbval-ignore-output"]
figures.show(
    pictures.roofline({"float32 products": roof, "int8 products": roof_int8}, points),
    alt="The measured roofline of this machine with nine points: prefill on the right, near the "
    "flat top, decode and one layer on the left, near the slope; 4 bits right of float32.",
)

# %% [markdown]
# Fewer bits move a point to the *right*, and along the slope right means up. Decode gains. Prefill
# is under the flat top already: its points move right and gain nothing, unless the arithmetic
# itself gets cheaper, as with int8.

# %%
sides = {name: [work.intensity for work in pair] for name, pair in works.items()}
for name, (prefill, decode) in sides.items():
    print(f"{name:11} prefill {prefill:5.1f} operations per byte, decode {decode:4.2f}")
assert sides["4 bits"][1] > 6 * sides["float32"][1]

# %% [markdown]
# What the roof does not know: **overhead**. A layer that takes a fraction of a millisecond is
# called from Python, allocates, converts. The less the kernel needs, the more of the time that is:
# the distance between "at best" and measured.

# %% [markdown]
# ## When 4 bits are no faster
#
# The wide weight waits for its bytes: 4 bytes / bandwidth in float32. The narrow one computes:
# unpacking, the same for any number of tokens, plus 2 operations for each token. It wins while
#
# $$ \text{unpack} + \frac{2\,\text{tokens}}{\text{peak}} < \frac{\text{bytes}}{\text{bandwidth}} $$

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.5 · Where 4 bits stop paying
#
# *12 minutes, difficulty 3 of 5.* Per weight and pass, the wide one takes
# max(wide_bits / 8 / bandwidth, 2 n / peak) seconds for n tokens, the narrow one
# max(bits / 8 / bandwidth, unpack + 2 n / peak). Return the least whole number of tokens, from 1
# on, with which the narrow one is not faster. `hint("09.5")`, `reveal("09.5")`.


# %% tags=["exercise-09.5"]
def crossing_batch(bandwidth, peak, bits, wide_bits, unpack):
    """The least whole number of tokens with which the weight of `bits` is not faster.

    bandwidth in bytes/s, peak in operations/s, unpack in seconds a weight and pass.
    """
    ...


check("09.5", crossing_batch)

# %% [markdown]
# Now yours. Unpacking: what one token's product takes, less its two operations.

# %% tags=["nbval-ignore-output"]
one_token = rungs["int4, all threads"][0] * 1e-9
unpack = max(one_token - 2 / peak, 0.1 * one_token)
crossing = crossing_tokens(roof, 4.125, 32, unpack)
tokens = (1, 2, 4, 8, 16, 32, 64)
float_best = [max(4 / bandwidth, 2 * n / peak) for n in tokens]
int4_best = [max(4.125 / 8 / bandwidth, unpack + 2 * n / peak) for n in tokens]
expected = [a / b for a, b in zip(float_best, int4_best, strict=True)]
print(f"unpacking takes {unpack * 1e9:.3f} ns a weight; float32 waits {4e9 / bandwidth:.3f} ns")
print(f"predicted crossing: {crossing:.0f} tokens")
assert (expected[0] > 1) == (crossing > 1)
guess_crossing = predict(
    "So in the measurement 4 bits and float32 meet", ["below 4 tokens", "4 to 16", "above 16"]
)

# %%
times = {"float32": [], "4 bits": []}
for n in tokens:
    xs = torch.randn(n, 4096)
    times["float32"].append(shortest([lambda xs=xs: xs @ W.T], seconds=0.15))
    some = weights[: max(1, 8 // n)]  # more tokens compute longer than a cached weight saves
    calls = [lambda xs=xs, p=p: int4_linear(xs, p) for p in some]
    times["4 bits"].append(shortest(calls, rounds=2, seconds=0.15))
together, alone = int4_linear(xs, packed), int4_linear(xs[:1], packed)
print(
    "64 tokens together and one alone, the same y:", torch.allclose(together[:1], alone, atol=1e-4)
)
assert torch.allclose(together[:1], alone, atol=1e-4)

# %% tags=["nbval-ignore-output"]
measured = [a / b for a, b in zip(times["float32"], times["4 bits"], strict=True)]
figures.show(
    pictures.speedups(tokens, measured, expected, crossing),
    alt="How many times as fast as float32 the 4-bit product is, against tokens at a time: it "
    "falls from several times at one token towards 1.",
)
meet = next((n for n, gain in zip(tokens, measured, strict=True) if gain <= 1.05), math.inf)
guess_crossing.compare(
    f"{meet} tokens",
    correct=guess_crossing.options[0 if meet < 4 else 1 if meet <= 16 else 2],
)
assert len(measured) == len(expected) == len(tokens)

# %% [markdown]
# Prediction and measurement part where a library is not at its roof: products of two to sixteen
# tokens are too wide for one kernel and too thin for the other, in most libraries. And ours walks
# through unpacked tiles that stay in the cache, from 16 tokens on, so it ends near 1, not below.

# %% [markdown]
# On GPUs the argument is the same with other numbers. Many kernels unpack once for each run of
# tokens, not once a pass, and then 4 bits end *below* 1: a prompt, or a batch of many users, is
# served faster in 16 bits.

# %% [markdown]
# ## The same kernel for a GPU
#
# Triton is Python for blocks: a *program* computes a block of the result, thousands run side by
# side. No threads, no registers; `tl.load` fetches a block of addresses. Here it is interpreted, on
# the CPU, which shows everything but the speed.

# %%
HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    import triton
    import triton.language as tl
else:  # the next cell still has to define its kernel
    triton, tl = SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=int)
    print("Triton is not installed (it is made for Linux): read on, nothing else here needs it.")


# %%
@triton.jit
def int4_program(x_ptr, codes_ptr, scale_ptr, y_ptr, rows, groups,
                 ROWS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # the rows of this program
    inside, half = row < rows, tl.arange(0, HALF)
    total = tl.zeros([ROWS], tl.float32)
    for group in range(0, groups):
        byte = (row[:, None] * groups + group) * HALF + half[None, :]  # [ROWS, HALF] addresses
        code = tl.load(codes_ptr + byte, mask=inside[:, None], other=0).to(tl.int32)
        scale = tl.load(scale_ptr + row * groups + group, mask=inside, other=0.0)
        low_x = tl.load(x_ptr + 2 * group * HALF + half)
        high_x = tl.load(x_ptr + (2 * group + 1) * HALF + half)
        low, high = (code & 15) - 8, (code >> 4) - 8
        dots = tl.sum(low * low_x[None, :] + high * high_x[None, :], axis=1)
        total += scale * dots  # once a group, as in exercise 09.3
    tl.store(y_ptr + row, total, mask=inside)


# %%
small = Int4Weight.from_quantized(rtn.quantize(W[:100, :512], INT4))  # 100 rows: no multiple of 32
x_small, y_small = torch.randn(512), torch.full((100,), float("nan"))
if HAS_TRITON:
    parts = (small.codes, small.scale.float(), y_small, 100, 4)
    int4_program[(triton.cdiv(100, 32),)](x_small, *parts, ROWS=32, HALF=64)
else:
    y_small = int4_linear(x_small, small)
wanted = int4_linear(x_small, small, implementation="reference")
print("as the reference says:", torch.allclose(y_small, wanted, atol=1e-4))
assert torch.allclose(y_small, wanted, atol=1e-4)

# %% [markdown]
# The same layout, the same place for the scale. What is new is the **mask**. Blocks have fixed
# sizes, powers of two; matrices do not. Without a mask the last program reads, and writes, memory
# that belongs to somebody else.

# %%
figures.show(
    pictures.programs(10, 12, 4, 16),
    alt="A matrix of 10 by 12 places in three programs of 4 rows by 16 columns; places beyond the "
    "matrix are crossed out.",
)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 09.6 · Loads with a mask
#
# *12 minutes, difficulty 3 of 5.* The first step of rounding activations to int8, as a Triton
# program would do it, written in NumPy. Program `pid` takes ROWS rows of a matrix in flat `memory`;
# row r begins at r · stride and has `columns` numbers, at most COLUMNS. Return max |x| of each row;
# 0 for rows from `rows` on. `load` does what `tl.load` does. `hint("09.6")`, `reveal("09.6")`.


# %% tags=["exercise-09.6"]
def row_maxima(memory, pid, rows, columns, stride, ROWS, COLUMNS):
    """float32 [ROWS]: max |x| of rows pid * ROWS …; 0 for rows that are not there."""

    def load(offsets, mask, other):
        """tl.load: memory where the mask is true; elsewhere `other`, and nothing is read."""
        return np.where(mask, memory[np.where(mask, offsets, 0)], other)

    ...


check("09.6", row_maxima)

# %% [markdown]
# labkit's GPU kernels are in `labkit/kernels/gpu`. With a GPU: take the line with
# `TRITON_INTERPRET` out of the first cell, restart, put `.cuda()` behind the tensors.

# %%
if HAS_TRITON:
    by_triton = int4_linear(x_small, small, implementation="gpu")
    assert torch.allclose(by_triton, wanted, atol=1e-4)
errors = {}
for bits in (16, 8):
    by_numba = int4_linear(x_small, small, activation_bits=bits)
    errors[bits] = float((by_numba - wanted).norm() / wanted.norm())
print("Numba's and the reference's results agree:", errors[16] < 1e-5)
print("rounded activations cost something:", errors[8] > 100 * errors[16])
assert errors[16] < 1e-5 < errors[8] < 0.02

# %% [markdown]
# ## Before and after
#
# The whole bundled model: its linear layers in float32, and as packed 4-bit codes, with activations
# as they are and in 8 bits.

# %%
guess_small = predict(
    "The bundled model has a few million weights. In 4 bits, one token is",
    ["over 3 times as fast", "1 to 3 times as fast", "slower"],
)

# %%
model, tokenizer = load()
text = load_corpus("stdlib-code", "heldout").text


def ppl(network):
    """Perplexity of held-out code: 256 tokens before each of 2048."""
    return perplexity(network, tokenizer, text, context=256, max_tokens=2048).value


ids = tokenizer(text[:2000], return_tensors="pt").input_ids[:, :64]
plain = {"bytes": sum(p.nbytes for p in linear_layers(model).values() for p in p.parameters()),
         "ppl": ppl(model), "latency": latency(model, 32, 16, rounds=2)}  # fmt: skip
rounded = map_weights(model, lambda _, m: PackedLinear(m).packed.dequantize())
with torch.no_grad():
    logits = rounded(ids).logits
rounded_ppl = ppl(rounded)

# %%
packed_layers = pack(model, linear_layers(model))
with torch.no_grad():
    apart = float((model(ids).logits - logits).abs().max())
four_bits = {"bytes": sum(layer.packed.nbytes for layer in packed_layers),
             "ppl": ppl(model), "latency": latency(model, 32, 16, rounds=2)}  # fmt: skip
for layer in packed_layers:
    layer.activation_bits = 8
both = {"bytes": four_bits["bytes"], "ppl": ppl(model),
        "latency": latency(model, 32, 16, rounds=2)}  # fmt: skip
print("packed codes and written-out weights give the same logits:", apart < 1e-2)
print("and the same perplexity:", abs(four_bits["ppl"] / rounded_ppl - 1) < 1e-3)
print(f"bytes of the linear layers: {plain['bytes'] / four_bits['bytes']:.1f} times fewer")
assert apart < 1e-2 and abs(four_bits["ppl"] / rounded_ppl - 1) < 1e-3

# %% tags=["nbval-ignore-output"]
runs = {"float32": plain, "4 bits": four_bits, "4 x 8 bits": both}
fig, axes = figures.new(1, 3, size=(9.2, 3.0))
values = {
    "megabytes of the linear layers": [run["bytes"] / 1e6 for run in runs.values()],
    "perplexity": [run["ppl"] for run in runs.values()],
    "milliseconds a token": [run["latency"].seconds_per_token * 1e3 for run in runs.values()],
}
for ax, (label, heights) in zip(axes, values.items(), strict=True):
    bars = ax.bar(list(runs), heights, color=figures.PALETTE[0], width=0.6)
    ax.bar_label(bars, fmt="%.3g", fontsize=9)
    ax.set(title=label, ylim=(0, 1.15 * max(heights)))
    ax.grid(axis="x", visible=False)
figures.show(fig, alt="Three bars each: megabytes fall to an eighth, perplexity rises a little, "
             "milliseconds a token do not fall so.")  # fmt: skip
ratio = values["milliseconds a token"][0] / values["milliseconds a token"][1]
guess_small.compare(
    f"{ratio:.2f} times as fast",
    correct=guess_small.options[0 if ratio > 3 else 1 if ratio >= 1 else 2],
)

# %%
more = four_bits["ppl"] / plain["ppl"] - 1
print("4 bits cost perplexity:", more > 0, "and rounding activations hardly adds:",
      abs(both["ppl"] / four_bits["ppl"] - 1) < 0.02)  # fmt: skip
assert more > 0 and abs(both["ppl"] / four_bits["ppl"] - 1) < 0.02

# %% [markdown]
# The bytes are an eighth; the time is not. A model that fits the cache does not wait for memory,
# and in small layers the calls take longer than the work. **Quantize for speed where bytes are what
# you wait for; know it before you start.**

# %% [markdown]
# ## What breaks this
#
# **Writing the weights out first.** "4-bit" code that dequantizes a whole layer before each product
# saves storage, and moves more bytes than 16 bits would.

# %%
narrow = 4.125 / 8
moved = {"fused 4 bits": narrow, "16 bits": 2, "dequantized to 16 bits first": narrow + 2 + 2}
for name, count in moved.items():
    print(f"{name:30} {count:.2f} bytes a weight")
assert moved["dequantized to 16 bits first"] > 2 * moved["16 bits"]

# %% [markdown]
# **Groups that the layout does not like.** Every format is made for some sizes. Others must be
# filled up, or take the slow road; and each scale costs 16 bits.

# %%
odd = torch.randn(64, 1536, generator=torch.Generator().manual_seed(0))
true_bits = {}
for group in (128, 64, 48, 32, 16):
    scheme = QuantScheme(4, True, "group", group, narrow_range=False)
    found = Int4Weight.from_quantized(rtn.quantize(odd, scheme))
    true_bits[group] = 8 * (found.codes.nbytes + 2 * found.scale.numel()) / odd.numel()
    print(f"groups of {group:3}: chunks of {found.chunk:3}, {true_bits[group]:.2f} bits a weight")
assert true_bits[16] > 2 * true_bits[128]

# %% [markdown]
# **An outlier among 8-bit activations.** One number a hundred times the others takes all the codes.
# W4A16 does not care.

# %%
calm = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
wild = calm.clone()
wild[0, 7] = 100 * calm.abs().max()
for name, given in (("calm", calm), ("one outlier", wild)):
    full, rest = int4_linear(given, packed), given.clone()
    rest[0, 7] = 0  # judge by what the other columns contribute
    changed = (int4_linear(given, packed, activation_bits=8) - full).norm()
    relative = float(changed / int4_linear(rest, packed).norm())
    print(f"{name:12} W4A8 loses {relative:.0%} of what the other columns say")
assert relative > 0.5

# %% [markdown]
# **Numbers that are none.** An integer has no code for NaN. A kernel that rounded on would give a
# plausible answer; ours refuses.

# %%
broken = calm.clone()
broken[0, 0] = float("nan")
print("W4A16 passes it on:", bool(int4_linear(broken, packed).isnan().all()))
try:
    int4_linear(broken, packed, activation_bits=8)
except NonFiniteError as caught:
    print("W4A8:", type(caught).__name__)

# %% [markdown]
# **Sums that are too narrow.** The older instruction adds pairs of products in int16 and saturates.
# Two bytes are enough.

# %%
pair = 255 * 127 + 255 * 127
print("one pair:", pair, "saturated to", min(pair, 2**15 - 1))
longest = 2**31 // (255 * 128)
print("int32 holds the sum of", longest, "columns, whatever they are")
assert pair > 2**15 - 1

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **Memory-bound or compute-bound: what do you mean, and what does quantization buy in each?**
#
# <details><summary>A model answer</summary>
#
# Count operations and bytes. Their quotient is the arithmetic intensity; the machine has one too,
# peak over bandwidth. Below it the work waits for bytes, above it for arithmetic.
#
# Decoding one sequence does two operations a weight, so about one operation per byte in 16 bits:
# far below any machine's ridge. There, fewer bits a weight are a speed-up of up to the ratio of
# bytes, whatever type the arithmetic has: weight-only 4 bits.
#
# Prefill and large batches use each weight hundreds of times. Fewer bytes buy nothing there;
# cheaper arithmetic does: INT8 or FP8 on both sides, with twice the peak of 16 bits. Weight-only
# quantization even costs the unpacking.
#
# </details>

# %% [markdown] tags=["interview"]
# **Estimate the tokens per second of a 7B model in 4 bits on a card with 1 TB/s.**
#
# <details><summary>A model answer</summary>
#
# Each token reads all weights once: 7 billion times 4.125 to 4.5 bits, about 3.7 GB, and the cache
# of keys and values, half a megabyte a token of context without grouped queries: 1 GB at 2000
# tokens. So 4.7 GB, at 1 TB/s a bound of about 210 tokens a second; 270 with a short context.
#
# A good kernel reaches 75 to 90 % of the bandwidth. Attention, norms, sampling and launches add a
# fixed time a layer: 32 layers times a dozen launches of 5 microseconds are 2 ms, nearly half of
# it, unless a graph captures them.
#
# In 16 bits: 14 GB, 70 a second. So the speed-up is three rather than four.
#
# </details>

# %% [markdown] tags=["interview"]
# **Our 4-bit model is slower than the 16-bit one. What do you check?**
#
# <details><summary>A model answer</summary>
#
# First what is slow: time prefill and decode apart, at the batch that is served. Slow prefill or a
# large batch is expected from weight-only kernels: those are bound by arithmetic.
#
# If decode at batch 1 is slow: is a fused kernel running at all, or are weights dequantized to
# memory first? A profile shows it at once. Does the format fit the kernel: group size, act-order,
# zero-points, shapes it can tile, compute capability? Is the model so small that launches and
# Python dominate? Then a graph or compilation helps, not bits.
#
# Then the kernel: bytes over time against the measured bandwidth. Far below means a bad layout, or
# too little work in flight.
#
# </details>

# %% [markdown] tags=["interview"]
# **How does a fused 4-bit kernel work, and why does the order of the nibbles matter?**
#
# <details><summary>A model answer</summary>
#
# It loads a register full of packed codes, takes them apart with AND and shift, makes numbers of
# them in registers and multiplies at once; the weights never exist in memory. Scale and zero-point
# are constants of a group, so they are applied once a group: scale times (sum of code x minus zero
# times sum of x).
#
# One AND must give codes in the order in which x lies in a register. With neighbours in a byte it
# gives every second one, and lanes must be shuffled. So codes are stored permuted, once, at load
# time: halves of a chunk on a CPU, the fragments of a matrix unit on a GPU (Marlin). Act-order is
# handled likewise, by permuting x.
#
# </details>

# %% [markdown] tags=["interview"]
# **W4A16, W8A8, W4A8: which would you serve, and where do the scales go?**
#
# <details><summary>A model answer</summary>
#
# W4A16 for few users and long answers: decode waits for weights, quality is good, activations
# need no care. W8A8 for throughput: large batches are bound by arithmetic, and int8 has twice the
# peak. W4A8 has both the small bytes and the cheap products; kernels are harder to write.
#
# A scale can leave an integer sum if it is constant along it. Activations: one a token. Weights:
# one an output channel, applied to the int32 result. Groups along the input break the sum: each
# group is summed in integers, scaled, added in float. That is cheap for one token and costly inside
# a matrix unit.
#
# Watch outliers: one large activation takes a token's codes.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why does batching change everything, and how do you find the batch where 4 bits stop paying?**
#
# <details><summary>A model answer</summary>
#
# The weights are read once a pass and serve all tokens in it, so intensity grows in proportion to
# the batch, until the ridge. Up to there another user is nearly free, and throughput grows.
#
# In 16 bits that takes about peak over bandwidth tokens: 150 on an A100. With 4 bits a quarter as
# many. From there both need the same arithmetic, and the 4-bit kernel unpacks on top. Setting
# unpack + 2 n / peak equal to the wide weight's bytes over bandwidth gives n.
#
# I would then measure, at the engine's real shapes: kernels for 2 to 32 tokens are often the weak
# spot. Attention does not batch so: every sequence has a cache of its own.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [Williams, Waterman and Patterson 2009](https://doi.org/10.1145/1498765.1498785): the roofline
# - [Making deep learning go brrrr](https://horace.io/brrr_intro.html): compute, bandwidth, overhead
# - [MARLIN](https://arxiv.org/abs/2408.11743): 4-bit kernels that stay fast up to batch 32
# - [LLM.int8()](https://arxiv.org/abs/2208.07339) and
#   [QServe](https://arxiv.org/abs/2405.04532): W8A8 and W4A8 in practice
# - [Triton's tutorials](https://triton-lang.org/main/getting-started/tutorials/index.html)
# - [A100](https://www.nvidia.com/en-us/data-center/a100/) and
#   [H100](https://www.nvidia.com/en-us/data-center/h100/): peak and bandwidth
# - `labkit/kernels/cpu/int4.py`: the kernel of this chapter, in Numba
