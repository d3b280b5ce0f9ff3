# %% [markdown]
# # 07 · GGUF
#
# **What is in the file on your laptop?**
#
# **You will be able to**
# - read a GGUF file byte by byte: header, metadata, tensors
# - take a block of any type apart, and say what it truly costs
# - explain scales of scales, mixes and every letter of "Q4_K_M"
# - compute an importance matrix, and say when it helps
# - write a file that llama.cpp, Ollama and LM Studio run, and choose its type
#
# **Time:** 90 minutes · **Before this:** [03_per_channel](03_per_channel.ipynb)

# %%
import math
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from labkit.core.errors import CalibrationError, FormatError, PeerError
from labkit.course import check, figures, hint, reveal
from labkit.course import widgets_07_pictures as pictures
from labkit.course.prediction import predict

# %%
from labkit.course.widgets_07_block import BlockExplorer
from labkit.course.widgets_07_memory import MemoryExplorer
from labkit.data import load_corpus
from labkit.data.calibration import calibration_set, cut_sequences
from labkit.formats.gguf.mix import ModelFacts, choose_types
from labkit.formats.gguf.reader import GgufFile
from labkit.models import load
from labkit.models.gguf_inputs import llama_cpp_inputs
from labkit.models.gguf_model import through_gguf
from labkit.models.importance import importance_matrix
from labkit.models.to_gguf import to_gguf
from labkit.models.walking import linear_layers, weight_matrix
from labkit.peers import ggml
from labkit.peers.llama_cpp import LlamaCpp
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES, row_bytes

# %% [markdown]
# ## The file
#
# GGUF is what llama.cpp runs, and with it Ollama and LM Studio: one file with weights, tokenizer
# and settings. `labkit` writes one from our model, in the most downloaded mix, Q4_K_M.

# %%
model, tokenizer = load()
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "model-Q4_K_M.gguf"
made = to_gguf((model, tokenizer), path, "Q4_K_M")
data = path.read_bytes()
magic, version, tensor_count, pair_count = struct.unpack_from("<4sIQQ", data)
print(magic, "version", version)
print("tensors as written:", tensor_count == len(made.tensors))
print("pairs of key and value:", pair_count > 10)

# %% [markdown]
# Behind these 24 bytes stand the pairs. A string is its length (uint64), then UTF-8; a value says
# its kind (uint32) first. The first pair, by hand:

# %%
(length,) = struct.unpack_from("<Q", data, 24)
end = 32 + length
key = data[32:end].decode()
kind, size = struct.unpack_from("<IQ", data, end)
value = data[end + 12 : end + 12 + size].decode()
print(f"key {key!r}, kind {kind} (string), value {value!r}")

# %%
starts = [0, 4, 8, 16, 24, 32, end, end + 4, end + 12, end + 12 + size]
names = ("magic", "version", "count of tensors", "count of pairs", "length of key", "key",
         "kind", "length of value", "value")  # fmt: skip
fig = pictures.header_map(data, list(zip(names, starts, starts[1:], strict=False)))
figures.show(
    fig,
    alt="The first bytes of the file in hexadecimal, coloured by meaning: magic 47475546, version, "
    "two counts, and the first pair of metadata with its lengths.",
)

# %% [markdown]
# A file is for machines of all kinds, so every number is little-endian: `03 00 00 00` is 3.
#
# After the pairs comes the table: for each tensor its name, its dimensions *innermost first*, its
# type and where it begins within the data. The data starts at a multiple of the alignment, 32
# unless `general.alignment` says otherwise.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.1 · The header by hand
#
# *18 minutes, difficulty 3 of 5.* `data` is a whole file. Return `(metadata, tensors)`. Kinds and
# `struct`'s letters: 4 uint32 `I`, 5 int32 `i`, 6 float32 `f`, 7 bool `?`, 8 string, 9 array
# (uint32 kind of items, uint64 count, items), 10 uint64 `Q`. In the table: string, uint32 count of
# dimensions, a uint64 each, uint32 type, uint64 offset. Shapes go out as numpy has them, the first
# byte counts from the file's beginning. `hint("07.1")`, `reveal("07.1")`.


# %% tags=["exercise-07.1"]
def read_header(data):
    """(metadata, tensors): tensors is name -> (shape, type number, first byte in the file)."""
    at = 8  # behind magic and version

    def number(letter):
        """The number that begins at byte `at`; `at` moves behind it."""
        nonlocal at
        at += struct.calcsize("<" + letter)
        return struct.unpack_from("<" + letter, data, at - struct.calcsize("<" + letter))[0]

    ...


check("07.1", read_header)

# %%
guess_head = predict(
    "Which part of this file is settings and tokenizer?", ["under 1 %", "1 to 10 %", "over 10 %"]
)

# %%
file = GgufFile(path)
settings = file.metadata
architecture = settings["general.architecture"]
for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"):
    print(f"{architecture}.{key}:", settings.get(f"{architecture}.{key}"))
print("tokenizer.ggml.model:", settings["tokenizer.ggml.model"])
print("tokens:", len(settings["tokenizer.ggml.tokens"]))
print("data begins at a multiple of 32:", next(iter(file.tensors.values())).offset % 32 == 0)

# %%
runs = pictures.file_runs(file)
head = runs[1][2]
figures.show(
    pictures.file_map(runs),
    alt="The file from first to last byte, wrapped into lines and coloured: a short piece of "
    "metadata and table, the embedding, then attention, MLP and norms of block after block.",
)
share = 100 * head / file.nbytes
guess_head.compare(
    f"{share:.0f} %",
    correct=guess_head.options[0 if share < 1 else 1 if share <= 10 else 2],
)
assert sum(last - first for _, first, last in runs) == len(data)

# %% [markdown]
# Names differ from Hugging Face's (`blk.0.attn_q.weight`), and for Llama so does the order of the
# rows of q and k: llama.cpp rotates neighbouring dimensions of a head, transformers dimension i
# with i + half. A converter that forgets this writes a model that babbles.

# %% [markdown]
# ## The simplest blocks
#
# A row is cut into **blocks**, and each block is stored on its own. Q8_0: 32 weights, a float16
# step, 32 codes int8: 34 bytes, 8.5 bits a weight.

# %%
flat = np.concatenate(
    [weight_matrix(layer).detach().float().cpu().numpy().ravel()
     for layer in linear_layers(model).values()]
)  # fmt: skip
W = flat[: len(flat) // 256 * 256].reshape(-1, 256)
block = gguf.quantize(W[0, :32], "Q8_0")[0]
step = float(block[:2].view("<f2")[0])
codes = block[2:].view(np.int8)
print("bytes:", len(block), "- largest code:", np.abs(codes).max())
print("half a step is the largest error:", np.abs(step * codes - W[0, :32]).max() < 0.51 * step)

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.2 · Encode Q8_0
#
# *10 minutes, difficulty 2 of 5.* `x` is float32 [n, 32], a block in each row. The step is
# max|x| / 127; codes are x times 1 / step, rounded as C's `roundf` does, halves away from zero. The
# step is stored as float16, the codes are taken before that. All zeros: step 0, codes 0.
# `hint("07.2")`, `reveal("07.2")`.


# %% tags=["exercise-07.2"]
def encode_q8_0(x):
    """uint8 [n, 34] of float32 x [n, 32]: step as float16, little-endian; 32 codes int8."""
    ...


check("07.2", encode_q8_0)

# %% [markdown]
# Q4_0 has 4-bit codes, two in a byte: 0 to 15 stand for -8 to 7. Its step is the weight of largest
# magnitude over -8, which makes use of that -8; so the scale may be negative. Byte j holds weight j
# and weight j + 16, not two neighbours: one mask gives 16 weights in order.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.3 · Decode Q4_0
#
# *8 minutes, difficulty 2 of 5.* `blocks` is uint8 [n, 18]: a float16 scale, then 16 bytes. Byte j
# holds the code of weight j in its low 4 bits and of weight j + 16 in its high 4. Codes are 8 more
# than they mean. Return float32 [n, 32]. `hint("07.3")`, `reveal("07.3")`.


# %% tags=["exercise-07.3"]
def decode_q4_0(blocks):
    """float32 [n, 32] of uint8 blocks [n, 18]: float16 scale, 16 bytes of two codes each."""
    ...


check("07.3", decode_q4_0)

# %% [markdown]
# ## A super-block taken apart
#
# Q4_K, 256 weights in 144 bytes. Eight sub-blocks of 32 each have a scale and a min of 6 bits;
# two float16 say what those small whole numbers are times:
#
# $$ w = d\, s\, q - d_{\min}\, m $$

# %%
Q4_K = BLOCK_TYPES["Q4_K"]
block = gguf.quantize(W[0], "Q4_K")[0]
for field in Q4_K.fields:
    print(f"bytes {field.offset:3} to {field.offset + field.nbytes - 1:3}  {field.name:7}"
          f"{field.meaning}")  # fmt: skip
figures.show(
    pictures.block_map(Q4_K, block.tobytes()),
    alt="The 144 bytes of a Q4_K super-block in nine rows of sixteen: two bytes d, two dmin, "
    "twelve of scales and mins, and 128 of codes, in four runs of 64 weights.",
)

# %% [markdown]
# By hand: two float16, the twelve bytes, the nibbles. In the twelve, numbers 0 to 3 have a byte of
# their own, whose upper two bits belong to numbers 4 to 7.

# %%
d, dmin = (float(part[0]) for part in (block[0:2].view("<f2"), block[2:4].view("<f2")))
a, b, rest = block[4:8], block[8:12], block[12:16]
scales = np.concatenate([a & 63, (rest & 15) | (a >> 6) << 4])
mins = np.concatenate([b & 63, (rest >> 4) | (b >> 6) << 4])
packed = block[16:].reshape(4, 32)
codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(8, 32)
print("scales of sub-blocks:", scales.tolist())
print("mins of sub-blocks:  ", mins.tolist())

# %%
step, low = (np.float32(x) * part.astype(np.float32) for x, part in ((d, scales), (dmin, mins)))
rebuilt = (step[:, None] * codes - low[:, None]).ravel()
print("the same weights as the decoder's, to the bit:", np.array_equal(
    rebuilt, gguf.dequantize(block, "Q4_K")[0]))  # fmt: skip
again = np.concatenate([
    block[:4],
    (scales[:4] | (scales[4:] >> 4) << 6), (mins[:4] | (mins[4:] >> 4) << 6),
    (scales[4:] & 15) | (mins[4:] & 15) << 4, (codes[0::2] | codes[1::2] << 4).ravel(),
])  # fmt: skip
print("packed again, the same 144 bytes:", np.array_equal(again, block))
assert np.array_equal(again, block)

# %% [markdown]
# `labkit` wrote those bytes in Python. Are they what llama.cpp's C would have written?

# %%
part = W[:: max(1, len(W) // 1000)]
for name in ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"):
    same = np.array_equal(gguf.quantize(part, name), ggml.quantize(part, name))
    print(f"{name:7} the same bytes as ggml's C: {same}")
    assert same

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.4 · Six bits, twelve bytes
#
# *12 minutes, difficulty 3 of 5.* `packed` is uint8 [n, 12]. Bytes 0 to 3 hold scales 0 to 3 in
# their low 6 bits, bytes 4 to 7 mins 0 to 3. Bytes 8 to 11 hold the low 4 bits of scales 4 to 7
# (low half) and of mins 4 to 7 (high half); their high 2 bits are on top of bytes 0 to 7. Return
# `(scales, mins)`, without scrolling up. `hint("07.4")`, `reveal("07.4")`.


# %% tags=["exercise-07.4"]
def unpack_scales(packed):
    """(scales, mins): uint8 [n, 8] each, 0 to 63, of the uint8 [n, 12] of Q4_K."""
    ...


check("07.4", unpack_scales)

# %% [markdown]
# Move over the bytes. Which byte would you least like to lose a bit of?

# %%
explorer = BlockExplorer(block)
explorer.byte.value = 4
figures.show_widget(
    explorer,
    alt="A slider over the 144 bytes of a super-block, and what the chosen byte means.",
)

# %%
explorer.byte.value = 16
print("byte 16 holds weights 0 and 32:", "weight 0," in explorer.meaning
      and "weight 32," in explorer.meaning)  # fmt: skip
broken = block.copy()
damage = {}
for name, at in (("a code", 20), ("a scale", 4), ("d", 1)):
    broken[:] = block
    broken[at] ^= 16
    changed = gguf.dequantize(broken, "Q4_K")[0] != gguf.dequantize(block, "Q4_K")[0]
    damage[name] = int(changed.sum())
print("weights that one flipped bit changes:", damage)

# %% [markdown]
# ## Why scales of scales?
#
# Small groups fit better (chapter 03), but every scale costs bits. With float16 scale and min,
# groups of 32 cost one bit a weight. What if the scales themselves are rounded, to 6 bits?

# %%
guess_six = predict(
    "Scales and mins of groups of 32 go from 16 bits to 6. The squared error grows by",
    ["under 2 %", "2 to 20 %", "more than 20 %"],
)


# %%
def two_levels(x, size, scale_bits):
    """x [n, 256] in 4-bit codes; scale and min of each `size` weights in `scale_bits` bits."""
    subs = x.reshape(len(x), -1, size)
    low = -np.minimum(subs.min(axis=2), 0)
    scale = (np.maximum(subs.max(axis=2), 0) + low) / 15
    if scale_bits < 16:  # whole multiples of one float16 for all of the 256
        top = 2**scale_bits - 1
        scale, low = (
            np.round(v / d) * d
            for v in (scale, low)
            for d in [np.float16(v.max(axis=1, keepdims=True) / top + 1e-7).astype(np.float32)]
        )
    else:
        scale, low = (np.float16(v).astype(np.float32) for v in (scale, low))
    scale, low = scale[..., None] + 1e-12, low[..., None]
    codes = np.clip(np.round((subs + low) / scale), 0, 15)
    return (codes * scale - low).reshape(x.shape)


# %%
def relative_error(other, x):
    """Squared error as a part of the sum of squares."""
    return float(((other - x) ** 2).sum() / (x**2).sum())


sample = W[:: max(1, len(W) // 4000)]
bits, error = {}, {}
for scale_bits, sizes in ((16, (256, 128, 64, 32, 16)), (6, (64, 32, 16)), (4, (64, 32, 16))):
    for size in sizes:
        shared = 0 if scale_bits == 16 else 2 * 16 / 256
        bits[scale_bits, size] = 4 + 2 * scale_bits / size + shared
        error[scale_bits, size] = relative_error(two_levels(sample, size, scale_bits), sample)
for what, key in (("no sub-blocks", (16, 256)), ("float16", (16, 32)), ("6 bits", (6, 32))):
    print(f"{what:14}{bits[key]:6.3f} bits, relative error {100 * error[key]:.2f} %")

# %%
fig, ax = figures.new(size=(7.0, 3.8))
labels = {16: "float16 scales and mins", 6: "6 bits", 4: "4 bits"}
for (scale_bits, label), marker in zip(labels.items(), "so^", strict=True):
    keys = [key for key in bits if key[0] == scale_bits]
    ax.plot([bits[k] for k in keys], [100 * error[k] for k in keys], marker=marker, label=label)
for key in ((16, 256), (16, 64), (16, 32), (16, 16), (6, 64), (6, 32), (6, 16)):
    ax.annotate(key[1], (bits[key], 100 * error[key]), xytext=(6, 4), textcoords="offset points")
ax.set(xlabel="bits per weight, all counted", ylabel="squared error (% of the weights')")
ax.legend(title="numbers at the dots: weights in a group")
figures.show(
    fig,
    alt="Error of 4-bit codes against true bits: float16 scales fall from 4.125 bits without "
    "sub-blocks to 6 bits with groups of 16; 6-bit scales lie far below them at equal bits.",
)

# %%
growth = error[6, 32] / error[16, 32] - 1
guess_six.compare(
    f"{100 * growth:.1f} %",
    correct=guess_six.options[0 if growth < 0.02 else 1 if growth < 0.2 else 2],
)
print("half a bit a weight is saved:", bits[16, 32] - bits[6, 32])
gain = 1 - error[6, 32] / error[16, 64]
print("against float16 groups of 64, also 4.5 bits, a fifth less error:", gain > 0.2)
assert growth < 0.05 and gain > 0.15 and bits[16, 64] == bits[6, 32]

# %% [markdown]
# That is the K-quants' idea: fine groups almost for free. Four bits would nearly do; Q2_K has them.
# **Why 256?** The two float16 are shared by enough weights to cost an eighth of a bit; hidden sizes
# are mostly multiples of 256; and a super-block is a few cache lines.

# %%
print(f"{'type':8}{'weights':>8}{'bytes':>7}{'bits per weight':>17}")
for name, known in BLOCK_TYPES.items():
    print(f"{name:8}{known.weights:8}{known.nbytes:7}{known.bits_per_weight:17.4g}")

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.5 · True bits per weight
#
# *7 minutes, difficulty 1 of 5.* A super-block has `sub_blocks` of `size` weights, codes of
# `code_bits`, in every sub-block a scale of `scale_bits`, and with `mins` a min of as many. On top
# stand one float16 for the scales and one for the mins; but where `scale_bits` is 16, the scales
# are float16 themselves and nothing stands on top. `hint("07.5")`, `reveal("07.5")`.


# %% tags=["exercise-07.5"]
def bits_per_weight(sub_blocks, size, code_bits, scale_bits, mins):
    """All bits of a (super-)block over its weights; scales of 16 bits are float16 already."""
    ...


check("07.5", bits_per_weight)

# %% [markdown]
# ## The search
#
# Min and max give a scale, but not the best one. ggml tries some twenty: take codes, fit the line
# through them by weighted least squares, keep the best. Large weights count more.

# %%
plain, searched = two_levels(sample, 32, 6), gguf.dequantize(gguf.quantize(sample, "Q4_K"), "Q4_K")
saved = 1 - relative_error(searched, sample) / relative_error(plain, sample)
print("the search removes over a tenth of the error, for no bit:", saved > 0.1)
assert saved > 0.08

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.6 · The best scale
#
# *10 minutes, difficulty 3 of 5.* The heart of that search. `x` and `codes` are [n, k], a block in
# each row; `importance` [k] says what an error in a column counts. Return float [n]: the scale d of
# each block with the least Σ importance (x - d · code)². Where all codes are 0, return 0.
# `hint("07.6")`, `reveal("07.6")`.


# %% tags=["exercise-07.6"]
def weighted_scale(x, codes, importance):
    """float [n]: for x, codes [n, k] the scale of least sum of importance [k] * error ** 2."""
    ...


check("07.6", weighted_scale)

# %% [markdown]
# ## What the name says
#
# | | |
# |---|---|
# | Q4 | 4-bit codes |
# | _0, _1 | blocks of 32: scale; scale and min |
# | _K | super-blocks of 256, scales in few bits |
# | IQ4 | codes point into a table of uneven levels |
# | _NL, _XS | that table in blocks of 32; in super-blocks |
# | _S, _M, _L | not a type but a **mix**: small, medium, large |

# %% [markdown]
# ## The mix, layer by layer
#
# "Q4_K_M" is a rule: Q4_K almost everywhere, Q6_K where errors hurt most. Those are the values of
# attention and the down projections, in the first and last eighth of the layers and every third
# between; and the output matrix.

# %%
guess_mix = predict(
    "How many bits per weight does our Q4_K_M file take, all tensors counted?",
    ["4.0 to 4.5", "4.5 to 5.0", "over 5.0"],
)

# %%
types = {tensor.name: tensor.type_name for tensor in made.tensors}
figures.show(
    pictures.type_map(types, "Q4_K_M of our model"),
    alt="Layers of the model and their matrices, coloured by type: Q4_K everywhere, but Q6_K for "
    "attn_v and ffn_down in the first layer, the last and some between.",
)

# %%
spent = made.bits_per_weight
guess_mix.compare(
    f"{spent:.2f}", correct=guess_mix.options[0 if spent < 4.5 else 1 if spent < 5 else 2]
)
for name, count in sorted(made.count().items()):
    part = sum(t.weights for t in made.tensors if t.type_name == name)
    total = sum(t.weights for t in made.tensors)
    print(f"{name:6}{count:4} tensors, {part / total:6.1%} of the weights")

# %% [markdown]
# A small model pays more: its embedding, here also the output matrix, is a large part of it and
# gets Q6_K. The same rule for a model of 8 billion weights needs only shapes:


# %%
def shapes_of(layers, hidden, inner, values, vocabulary):
    """Name -> shape of the matrices of a Llama with an output matrix of its own."""
    shapes = {"token_embd.weight": (vocabulary, hidden), "output.weight": (vocabulary, hidden)}
    for n in range(layers):
        rows = {"attn_q": hidden, "attn_k": values, "attn_v": values, "attn_output": hidden,
                "ffn_gate": inner, "ffn_up": inner}  # fmt: skip
        shapes |= {f"blk.{n}.{role}.weight": (out, hidden) for role, out in rows.items()}
        shapes[f"blk.{n}.ffn_down.weight"] = (hidden, inner)
    return shapes


def mean_bits(shapes, chosen):
    """Bits per weight of matrices in these types."""
    size = sum(row_bytes(chosen[n].type_name, cols) * rows for n, (rows, cols) in shapes.items())
    return 8 * size / sum(rows * cols for rows, cols in shapes.values())


# %%
llama_8b = shapes_of(32, 4096, 14336, 1024, 128256)
facts = ModelFacts("llama", 32, 32, 8)
chosen = choose_types(llama_8b, "Q4_K_M", facts)
figures.show(
    pictures.type_map({n: choice.type_name for n, choice in chosen.items()}, "Q4_K_M, 32 layers"),
    alt="The same map for 32 layers: Q6_K for attn_v and ffn_down in layers 0 to 3, 28 to 31 and "
    "every third between, Q4_K elsewhere.",
)
print(f"bits per weight: {mean_bits(llama_8b, chosen):.2f}")

# %% [markdown]
# ## What each type costs
#
# Each type goes through a file and back into the model; then it reads held-out code. Beside
# perplexity we take the **KL divergence** to the float model's predictions: less noisy, and it sees
# changes that happen to help.

# %%
heldout = {
    c: cut_sequences(tokenizer, load_corpus(c, "heldout").documents[:40], 6, 256)
    for c in ("stdlib-code", "stdlib-prose")
}


@torch.no_grad()
def log_probabilities(network, corpus):
    """Of every next token: float32 [sequences, 255, vocabulary]."""
    logits = network(input_ids=heldout[corpus].to(network.device)).logits[:, :-1]
    return F.log_softmax(logits.float().cpu(), dim=-1)


float_says = {corpus: log_probabilities(model, corpus) for corpus in heldout}


# %%
def quality(network, corpus="stdlib-code"):
    """(perplexity, KL divergence from the float model in nats a token) on held-out text."""
    says, float_said = log_probabilities(network, corpus), float_says[corpus]
    nll = -says.gather(2, heldout[corpus][:, 1:, None]).mean()
    return math.exp(nll), float((float_said.exp() * (float_said - says)).sum(dim=-1).mean())


results, networks = {}, {}


def measure(names):
    """Quality and bits of each type, kept in `results`."""
    for name in names:
        networks[name], conversion = through_gguf(model, name)
        results[name] = (conversion.bits_per_weight, *quality(networks[name]))


# %%
guess_knee = predict(
    "Which is the first of these types to cost more than 2 % of perplexity?",
    ["Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"],
)

# %%
measure(["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0"])

# %%
measure(["Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"])

# %%
measure(["Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"])

# %% tags=["nbval-ignore-output"]
float_ppl = quality(model)[0]
print(f"{'':8}{'bits':>6}{'MB':>7}{'perplexity':>12}{'KL':>9}")
total = sum(tensor.weights for tensor in made.tensors)
for name, (spent, ppl, kl) in results.items():
    print(f"{name:8}{spent:6.2f}{spent * total / 8e6:7.2f}{ppl / float_ppl - 1:+12.1%}{kl:9.4f}")
assert abs(results["Q8_0"][1] / float_ppl - 1) < 0.01

# %%
figures.show(
    pictures.cost_of_types(results, float_ppl, total),
    alt="Perplexity added against megabytes, KL divergence against bits per weight, for fifteen "
    "types: perplexity is flat down to a knee near 4 bits; KL falls steadily on its log scale, "
    "with Q4_0 and Q4_1 above the line of the others.",
)

# %% [markdown]
# On so little text perplexity is noisy: a type can look better than the one above it, even than the
# float model, by luck. KL compares whole distributions, token by token, and keeps the order. Report
# both.

# %% tags=["nbval-ignore-output"]
added = {name: ppl / float_ppl - 1 for name, (_, ppl, _) in results.items()}
first = next((name for name in guess_knee.options if added[name] > 0.02), "Q2_K")
guess_knee.compare(f"{first}, {added[first]:+.1%}", correct=first)

# %%
kl = {name: values[2] for name, values in results.items()}
print("nearest to the float model:", min(kl, key=kl.get), "- furthest:", max(kl, key=kl.get))
print("IQ4_XS is smaller than Q4_0, and nearer:", kl["IQ4_XS"] < kl["Q4_0"])
print("_M is nearer than _S:", kl["Q4_K_M"] < kl["Q4_K_S"] and kl["Q3_K_M"] < kl["Q3_K_S"])
assert kl["IQ4_XS"] < kl["Q4_0"] and kl["Q3_K_M"] < kl["Q3_K_S"] and max(kl, key=kl.get) == "Q2_K"

# %% [markdown]
# ## The importance matrix
#
# llama.cpp calls it imatrix: for every column of every matrix the mean of x² over calibration text.
# It does not move weights as GPTQ does nor scale them as AWQ does; it only tells the search of
# scales which errors count.

# %%
importance = {
    corpus: importance_matrix(model, calibration_set(tokenizer, corpus, 64, 64), datasets=(corpus,))
    for corpus in heldout
}

# %%
fig, ax = figures.new()
for corpus, matrix in importance.items():
    name = max(matrix.sums, key=lambda n: matrix.sums[n].max() / np.median(matrix.sums[n]))
    ranked = np.sort(matrix.sums[name] / np.median(matrix.sums[name]))[::-1]
    ax.plot(np.linspace(0, 100, len(ranked)), ranked, label=f"{name}, {corpus.split('-')[1]}")
ax.set(yscale="log", xlabel="columns, most important first (%)", ylabel="mean x² over the median")
ax.legend()
figures.show(
    fig,
    alt="Importance of the columns of the most uneven matrix on a log scale, from code and from "
    "prose: a few columns count many times the median, most count about alike.",
)

# %%
guess_imatrix = predict(
    "At Q2_K, by how much does an imatrix of the right text lower the KL divergence?",
    ["not at all", "up to 10 %", "10 to 40 %", "over 40 %"],
)

# %%
effect = {}


def with_importance(mix):
    """KL divergence on both corpora without, and with the importance of either."""
    for source in ("none", *heldout):
        network, _ = through_gguf(model, mix, importance.get(source))
        for corpus in heldout:
            effect[mix, source, corpus] = quality(network, corpus)


with_importance("Q2_K")

# %%
with_importance("Q3_K_S")

# %%
with_importance("Q4_K_S")

# %% tags=["nbval-ignore-output"]
titles = "".join(f"{corpus.split('-')[1]:>13}{'KL':>9}" for corpus in heldout)
print(f"{'':8}{'imatrix':9}{titles}")
for mix in ("Q2_K", "Q3_K_S", "Q4_K_S"):
    for source in ("none", *heldout):
        cells = "".join("{:13.2f}{:9.4f}".format(*effect[mix, source, c]) for c in heldout)
        print(f"{mix:8}{source.split('-')[-1]:9}{cells}")
assert all(effect["Q2_K", "none", c][1] > effect["Q4_K_S", "none", c][1] for c in heldout)

# %%
mixes = ("Q2_K", "Q3_K_S", "Q4_K_S")
fig, axes = figures.new(1, 2, size=(8.2, 3.4), sharey=True)
for ax, corpus in zip(axes, heldout, strict=True):
    other = next(c for c in heldout if c != corpus)
    for place, (source, label) in enumerate(((corpus, "right text"), (other, "wrong text"))):
        ratio = [effect[m, source, corpus][1] / effect[m, "none", corpus][1] for m in mixes]
        ax.bar(np.arange(3) + (place - 0.5) * 0.36, ratio, 0.34, label=label)
    ax.axhline(1, color="black", linewidth=1, linestyle="--")
    ax.set_xticks(range(3), labels=mixes)
    ax.set_title(f"tested on {corpus.split('-')[1]}")
axes[0].set(ylabel="KL / that without an imatrix")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
figures.show(
    fig,
    alt="KL divergence with an importance matrix over that without, for three mixes, tested on "
    "code and on prose, with the right and with the wrong calibration text.",
)

# %% tags=["nbval-ignore-output"]
code, swapped = "stdlib-code", dict(zip(heldout, list(heldout)[::-1], strict=True))
right = {m: np.mean([effect[m, c, c][1] / effect[m, "none", c][1] for c in heldout]) for m in mixes}
saved = 1 - right["Q2_K"]
place = 0 if saved < 0.005 else 1 if saved < 0.1 else 2 if saved < 0.4 else 3
guess_imatrix.compare(f"{saved:.0%}", correct=guess_imatrix.options[place])

# %%
print("the right text helps at 2 and 3 bits:", max(right["Q2_K"], right["Q3_K_S"]) < 1)
wrong = {m: np.mean([effect[m, o, c][1] / effect[m, "none", c][1] for c, o in swapped.items()])
         for m in mixes}  # fmt: skip
print("at Q2_K more than the wrong text:", right["Q2_K"] < wrong["Q2_K"])
gain = {m: effect[m, "none", code][1] - effect[m, code, code][1] for m in mixes}
print("at 4 bits it saves fewer nats:", gain["Q4_K_S"] < 0.5 * gain["Q2_K"])
print("the next larger mix would help more:", kl["Q3_K_M"] < effect["Q3_K_S", code, code][1])
assert max(right["Q2_K"], right["Q3_K_S"]) < 1 and right["Q2_K"] < wrong["Q2_K"]

# %% [markdown]
# So it is worth having, and no miracle. Look at the table again: perplexity does not always fall
# with KL, in some rows it may rise. And for Q8_0 and F16 an imatrix changes nothing: their codes
# need no search.

# %% [markdown]
# ## llama.cpp runs it
#
# The file from the first cell, loaded by llama.cpp itself. First a float file, to see that both
# compute the same model; then Q4_K_M.

# %%
guess_same = predict(
    "The same Q4_K_M weights in llama.cpp and in torch: the perplexities differ by",
    ["nothing at all", "less than 1 %", "more than 1 %"],
)

# %%
ids = [tokenizer.bos_token_id or 0, *heldout["stdlib-code"].flatten().tolist()][:1025]


@torch.no_grad()
def torch_logits(network, count):
    """Logits behind the first tokens: float32 [count, vocabulary]."""
    return network(input_ids=torch.tensor([ids[:count]]).to(network.device)).logits[0].cpu().numpy()


float_path = Path(folder.name) / "model-F32.gguf"
to_gguf((model, None), float_path, "F32")
with LlamaCpp(float_path) as runner:
    difference = np.abs(runner.logits(ids[:128]) - torch_logits(model, 128)).max()
print("float32, largest difference of a logit at most 0.001:", difference <= 1e-3)
assert difference <= 1e-3

# %%
network = networks["Q4_K_M"]
table = torch.tensor([ids[at : at + 257] for at in range(0, 1024, 256)])


@torch.no_grad()
def torch_perplexity(network):
    """Of the 1024 tokens behind the first, 256 at a time."""
    logits = network(input_ids=table[:, :-1].to(network.device)).logits.float().cpu()
    return math.exp(F.cross_entropy(logits.flatten(0, 1), table[:, 1:].flatten()))


ours = torch_perplexity(network)
with llama_cpp_inputs(network, path):
    ours_rounded, rounded_says = torch_perplexity(network), torch_logits(network, 128)
with LlamaCpp(path) as runner:
    theirs, they_say = runner.perplexity(ids, 256).value, runner.logits(ids[:128])

# %% tags=["nbval-ignore-output"]
gap = abs(theirs / ours - 1)
guess_same.compare(
    f"{gap:.2%} (llama.cpp {theirs:.3f}, torch {ours:.3f})",
    correct=guess_same.options[0 if gap < 1e-6 else 1 if gap < 0.01 else 2],
)

# %%
near = np.abs(they_say - torch_logits(network, 128)).mean()
nearer = np.abs(they_say - rounded_says).mean()
print("perplexities differ by less than 1 %:", gap < 0.01)
print("with inputs rounded to 8 bits, as llama.cpp does, torch comes nearer:", nearer < near)
assert gap < 0.01 and nearer < near and abs(theirs / ours_rounded - 1) < 0.005

# %% [markdown]
# That is the difference: llama.cpp multiplies integers. It rounds the *inputs* of every quantized
# matrix to 8 bits on the way. Weight-only formats are, on its CPU path, weight and activation
# formats.

# %% tags=["nbval-ignore-output"]
prompt = "    if not isinstance(value, "
start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
for each in (float_path, path):
    with LlamaCpp(each) as runner:
        text = tokenizer.decode(runner.generate(start, 24))
        speed = runner.tokens_per_second(start, 32)
    print(f"{each.stem}: {each.stat().st_size / 1e6:.1f} MB, {speed:.0f} tokens/s with one thread")
    print("   ", repr(prompt + text))
assert speed > 0 and text

# %% [markdown]
# ## Ollama and LM Studio
#
# Both run llama.cpp's library or their own build of it, and read the same file. For Ollama a
# `Modelfile` of one line is enough, then `ollama create my-model -f Modelfile` and
# `ollama run my-model`:
#
# ```
# FROM ./model-Q4_K_M.gguf
# ```
#
# Ollama copies it into its own store, `~/.ollama/models`.

# %% [markdown]
# LM Studio looks for `~/.lmstudio/models/publisher/model/file.gguf`, two folders deep;
# `lms import file.gguf` puts it there.
#
# A chat model needs its **chat template**. It stands in the file as `tokenizer.chat_template`, a
# Jinja program. LM Studio uses it; Ollama has templates of its own language, recognises known ones,
# and takes `TEMPLATE` in the Modelfile. Our model does not chat.

# %%
print("a chat template in our file:", "tokenizer.chat_template" in settings)
print("the end-of-text token is named:", "tokenizer.ggml.eos_token_id" in settings)

# %% [markdown]
# ## Which type for which machine?
#
# Weights are not all: the cache of keys and values and a few hundred megabytes of buffers live
# beside them. Bits below are those of the 8-billion-weight shapes; quality is that of our small
# model, and a large one suffers less.

# %%
mixes_8b = {
    name: (mean_bits(llama_8b, choose_types(llama_8b, name, facts)), kl) for name, (*_, kl) in
    results.items()
}  # fmt: skip
memory = MemoryExplorer(mixes_8b, "KL divergence of our model (nats)")
figures.show_widget(
    memory,
    alt="Sliders for memory, weights and cache; the types by memory needed and quality, those that "
    "fit in blue and the best of them in orange.",
)

# %%
memory.limit.value, memory.weights.value, memory.cache.value = 8.0, 8.0, 1.0
eight = memory.best
memory.limit.value = 4.0
print("8 GiB hold more bits than 4 GiB:", mixes_8b[eight][0] > mixes_8b[memory.best][0])
memory.limit.value = 1.0
print("in 1 GiB:", memory.best)
assert memory.best is None

# %% [markdown] tags=["exercise-text"]
# ### Exercise 07.7 · A type for your memory
#
# *8 minutes, difficulty 2 of 5.* `types` is name -> (bits per weight, perplexity). Of those whose
# `weights` fit beside a cache of `cache_bytes` into `limit_gib` GiB of memory (2**30 bytes each),
# return the name of the one with the least perplexity. Where none fits, raise `ValueError`.
# `hint("07.7")`, `reveal("07.7")`.


# %% tags=["exercise-07.7"]
def choose_type(types, weights, cache_bytes, limit_gib):
    """Of types, name -> (bits per weight, perplexity), the best that fits; or ValueError."""
    ...


check("07.7", choose_type)

# %% [markdown]
# ## Before and after
#
# The whole model as four files: how far the hidden states have drifted from those of the float
# model, behind every block.


# %%
@torch.no_grad()
def drift(network):
    """Relative error of the hidden states behind each block, on unseen code."""
    tokens = heldout["stdlib-code"][:2].to(network.device)
    got, right = (n(input_ids=tokens, output_hidden_states=True).hidden_states
                  for n in (network, model))  # fmt: skip
    return [float((g - r).norm() / r.norm()) for g, r in zip(got[1:], right[1:], strict=True)]


shown = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q8_0")
drifts = {name: drift(networks[name]) for name in shown}

# %%
fig, ax = figures.new(size=(7.0, 3.6))
for (name, values), marker in zip(drifts.items(), "so^D", strict=True):
    ax.plot(range(1, len(values) + 1), values, marker=marker,
            label=f"{name}, {results[name][0]:.1f} bits")  # fmt: skip
ax.set(xlabel="behind block", ylabel="relative error of the hidden states", yscale="log")
ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8)
figures.show(
    fig,
    alt="Relative error of the hidden states behind each block, on a log scale: four lines one "
    "above the other, Q8_0 lowest, then Q4_K_M, Q3_K_M, and Q2_K highest.",
)
last = [values[-1] for values in drifts.values()]
print("fewer bits, more drift:", last == sorted(last, reverse=True))
assert last == sorted(last, reverse=True)

# %% [markdown]
# ## What breaks this
#
# **Rows that 256 does not divide.** Qwen2-0.5B has 896 columns. No K-quant fits, and llama.cpp
# takes another type for those matrices and says so in a line of its log. What does "Q4_K_M" then
# cost?

# %%
qwen = shapes_of(24, 896, 4864, 128, 151936)
del qwen["output.weight"]  # tied to the embedding
fallen = choose_types(qwen, "Q4_K_M", ModelFacts("qwen2", 24, 14, 2))
print("blk.5.attn_q.weight:", fallen["blk.5.attn_q.weight"])
share = sum(bool(choice.reason) for choice in fallen.values()) / len(fallen)
print(f"{share:.0%} of the matrices fell back; {mean_bits(qwen, fallen):.2f} bits per weight")
assert mean_bits(qwen, fallen) > 6

# %% [markdown]
# **Columns that calibration never saw.** With an importance of 0 for a whole block every scale is
# as good as any other: 0 / 0. A single dead column does worse in silence: its weights may go
# anywhere, until a prompt arrives that uses it.

# %%
seen = np.ones(256, np.float32)
seen[5] = 0
errors = [
    np.abs(gguf.dequantize(gguf.quantize(sample, "Q2_K", matter), "Q2_K") - sample)[:, 5].mean()
    for matter in (np.ones(256, np.float32), seen)
]
print("the dead column's weights are worse off:", errors[1] > errors[0])
try:
    gguf.quantize(sample, "Q2_K", np.zeros(256, np.float32))
except CalibrationError as error:
    print(error)
assert errors[1] > errors[0]

# %% [markdown]
# **A download that stopped.** The header is whole and promises tensors that are not there. Who maps
# the file and believes the table reads beyond its end.

# %%
short = Path(folder.name) / "short.gguf"
short.write_bytes(data[: len(data) // 2])
try:
    GgufFile(short)
except FormatError as error:
    print("labkit names the tensor:", "takes bytes" in error.what)
    print(error.remedy)
try:
    LlamaCpp(short)
except PeerError:
    print("llama.cpp refuses it, too")

# %% [markdown]
# ## Explain it in an interview
#
# Say each answer aloud before you unfold it.

# %% [markdown] tags=["interview"]
# **What do the letters of Q4_K_M mean?**
#
# <details><summary>A model answer</summary>
#
# Q4: codes of 4 bits. K: a k-quant; super-blocks of 256 weights in sub-blocks, whose scales and
# mins are themselves quantized, to 6 bits in Q4_K, under two float16. M: medium, which names a mix
# for a whole file, not a block type. Q4_K_M stores most matrices as Q4_K and gives Q6_K to the
# output matrix, and to the values of attention and the down projections of about half the layers.
# _S gives fewer matrices more bits, _L more.
#
# So "4 bit" is 4.5 for Q4_K, and nearly 5 for the file. _0 and _1 are the older blocks of 32 with a
# scale, or a scale and a min. IQ types look codes up in a table of uneven levels.
#
# </details>

# %% [markdown] tags=["interview"]
# **Why does Q4_K quantize its scales, and why 256?**
#
# <details><summary>A model answer</summary>
#
# Groups of 32 fit weights well, but a float16 scale and min for each cost a whole bit a weight. A
# scale needs little precision: rounding it to 6 bits changes a step by at most about one per cent
# of the largest, and the codes are chosen anew for the rounded step. Measured above, the error
# grows by less than a few per cent while half a bit is saved. Float16 groups of 64 cost the same
# 4.5 bits and have far more error.
#
# The price is a float16 pair that the rounded scales are times. Over 256 weights it costs an eighth
# of a bit; over 32 it would cost all that was won. And most hidden sizes are multiples of 256.
#
# </details>

# %% [markdown] tags=["interview"]
# **What is an importance matrix? How does it differ from GPTQ and AWQ?**
#
# <details><summary>A model answer</summary>
#
# For every column of a matrix the mean of x² over calibration text: the diagonal of GPTQ's Hessian.
# The search for each block's scale minimises the error weighted by it. Codes stay nearest or almost
# so; no weight makes up for another, as in GPTQ, and no channel is rescaled, as in AWQ. The format
# and the kernels do not change.
#
# It helps most at 2 and 3 bits, where there is much error to shift; at 4 bits it saves little, and
# a larger mix saves more. Text of another domain mostly helps less, and columns that it never saw
# are left to chance. So calibrate on text like what is served, with enough of it, and compare with
# and without it on held-out text.
#
# </details>

# %% [markdown] tags=["interview"]
# **A 4-bit GGUF gives other perplexity in llama.cpp than its dequantized weights in PyTorch. Why?**
#
# <details><summary>A model answer</summary>
#
# First the harmless reason: llama.cpp's CPU kernels round each matrix's inputs to 8 bits, in blocks
# of 32 or 256, and multiply integers. Emulating that in PyTorch brings the two together. Its cache
# is float16 by default and flash attention sums in another order.
#
# Then the evaluation: another context length or stride, a first token added or not, another
# tokenization. Compare token ids first.
#
# Then the conversion: rows of q and k not reordered, a wrong rope base or norm epsilon in the
# metadata, Gemma's norms without their +1. A float32 file tells these apart: its logits must agree
# to about 1e-3 before any quantized one is looked at.
#
# </details>

# %% [markdown] tags=["interview"]
# **A user has 8 GiB and an 8B model. Which file do you recommend?**
#
# <details><summary>A model answer</summary>
#
# Count: weights at b bits take 8e9 · b / 8 bytes. Q4_K_M at 4.9 bits is 4.6 GiB, Q5_K_M 5.3, Q6_K
# 6.1, Q8_0 7.9. Then the cache: with 32 layers, 8 key-value heads of 128 in float16 it is 128 KiB a
# token, 1 GiB at 8192 tokens. Then buffers, and the system itself.
#
# So Q4_K_M or Q5_K_M, with Q4_K_M leaving room for context. Q6_K only with a short one. Below
# Q4_K_M quality falls off the knee: at 3 bits I would rather look at a smaller model with more
# bits, and compare both on the user's task.
#
# On a GPU of that size the same holds, or some layers stay on the CPU at a price in speed.
#
# </details>

# %% [markdown] tags=["interview"]
# **A "Q4_K_M" of a small model has over 6 bits a weight. What happened?**
#
# <details><summary>A model answer</summary>
#
# Two things. Rows that are no multiple of 256 take no K-quant: llama.cpp falls back to blocks of
# 32, Q5_0 for Q4_K and Q8_0 for Q6_K, with a line in the log. Qwen2-0.5B with its 896 columns is
# the well-known case: nearly every matrix falls back.
#
# And the embedding: in a small model with a large vocabulary it is a third of all weights, tied to
# the output matrix, and so gets Q6_K, here Q8_0.
#
# I would list the types with an inspect tool before I trust a name, and for such a model take Q4_0
# or IQ4_NL, whose blocks of 32 fit, or Q8_0 outright: it is small anyway.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [GGUF's specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
# - [k-quants](https://github.com/ggml-org/llama.cpp/pull/1684): the pull request that brought them
# - [importance matrices](https://github.com/ggml-org/llama.cpp/pull/4861), and the
#   [discussion of overfitting](https://github.com/ggml-org/llama.cpp/discussions/5006)
# - [ggml-quants.c](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c)
# - [Ollama: importing a model](https://github.com/ollama/ollama/blob/main/docs/import.md)
# - [LM Studio: import](https://lmstudio.ai/docs/app/basics/import-model)
