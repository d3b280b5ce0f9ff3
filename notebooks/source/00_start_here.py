# %% [markdown]
# # 00 · Start here
#
# **What does quantization cost, here, now?**
#
# **You will be able to**
# - say what quantization does to a weight, in one line of arithmetic
# - read the chart that this course keeps coming back to: quality against bits per weight
# - name two things that decide the damage besides the number of bits
# - use the exercise checker
#
# **Time:** 15 minutes · **Before this:** nothing but Python

# %% [markdown]
# Everything runs on your own processor, offline. `labkit` is the Python package beside these
# notebooks; it holds every method of the course, written to be read.

# %%
import torch

from labkit.core.scheme import QuantScheme
from labkit.course import check, figures, hint, reveal
from labkit.course.prediction import predict
from labkit.course.widgets_progress import course_progress
from labkit.data.tasks import make_task
from labkit.evaluate.score import Effort, score
from labkit.evaluate.score_chart import score_chart
from labkit.evaluate.score_entries import rtn_entries
from labkit.evaluate.score_row import RECORDED_ALL, recorded_rows
from labkit.evaluate.size import parameter_count
from labkit.models import load
from labkit.models.apply import map_weights, quantize_model
from labkit.models.walking import linear_layers
from labkit.quantize import rtn

# %% [markdown]
# ## A model is a pile of numbers
#
# The bundled model is small, but it is a real one: the Llama architecture, trained on the Python
# standard library and on four tasks with exact answers.

# %%
model, tokenizer = load()
layers = linear_layers(model)
inside = sum(layer.weight.numel() for layer in layers.values())
print(f"{parameter_count(model) / 1e6:.1f} million parameters")
print(f"{inside / parameter_count(model):.0%} of them in {len(layers)} linear layers")

# %% [markdown]
# Each linear layer multiplies its input by a matrix of weights. Here are eight weights of one
# matrix, as they were trained.

# %%
name, layer = next(iter(layers.items()))
row = layer.weight[0, :8].detach()
print(name, list(layer.weight.shape))
print([round(w, 4) for w in row.tolist()])

# %% [markdown]
# ## Quantization in one line
#
# Divide by a *scale*, round to a whole number, keep the whole number. To use it, multiply by the
# scale again. With 4 bits and a grid that is symmetric around zero, the whole numbers run from
# -7 to 7.

# %%
scale = row.abs().max() / 7
codes = torch.round(row / scale).to(torch.int8)
print("codes   ", codes.tolist())
print("restored", [round(w, 4) for w in (codes * scale).tolist()])
error = (row - codes * scale).abs().max()
print("largest error is at most half a scale:", bool(error <= scale / 2))

# %% [markdown]
# `labkit` does the same to the whole matrix. One scale for each row ("channel") makes few extra
# bits: codes and scales together are counted here.

# %%
quantized = rtn.quantize(layer.weight, QuantScheme(4, granularity="channel"))
print(quantized)

# %% [markdown]
# This simplest of methods is *round-to-nearest* (RTN). Fewer bits make a smaller model. What do
# they break? Guess before you look.

# %%
guess = predict(
    "The model answers test questions. Which is the first that clearly ruins it?",
    ["8 bits, one scale a matrix", "4 bits, one scale a matrix", "2 bits, one scale a row"],
)

# %% [markdown]
# ## The same questions, fewer bits
#
# Five versions of the model continue the same prompts. A `group` is 64 neighbouring weights of a
# row that share a scale.

# %%
VERSIONS = {
    "FP32": None,
    "INT8 channel": QuantScheme(8, granularity="channel"),
    "INT4 group": QuantScheme(4, granularity="group", group_size=64),
    "INT4 tensor": QuantScheme(4, granularity="tensor"),
    "INT2 channel": QuantScheme(2, granularity="channel"),
}
models = {
    label: model if scheme is None else quantize_model(model, scheme)[0]
    for label, scheme in VERSIONS.items()
}


# %%
def continued(version, prompt, count):
    """What a model writes after a prompt, always taking the likeliest token."""
    ids = tokenizer(prompt, return_tensors="pt").to(version.device)
    out = version.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


# %% [markdown]
# A question of the "doctest" task: what does Python print?

# %%
question = make_task("doctest", 12, seed=0)[-1]
print(question.prompt, end="")
print("right answer:", question.answer)

# %% tags=["nbval-ignore-output"]
answers = {name: continued(version, question.prompt, 4) for name, version in models.items()}
for label, answer in answers.items():
    print(f"{label:13} {answer.splitlines()[:1]}")
assert answers["INT8 channel"].splitlines()[:1] == answers["FP32"].splitlines()[:1]

# %% [markdown]
# And free text: the documentation of a function that does not exist.

# %% tags=["nbval-ignore-output"]
prompt = "Return the number of"
texts = {name: continued(version, prompt, 30) for name, version in models.items()}
for label, text in texts.items():
    print(f"{label}:\n{prompt}{text}\n")
assert texts["INT2 channel"] != texts["FP32"]

# %% [markdown]
# ## Measure it
#
# One lucky answer proves nothing. *Perplexity* says how surprised a model is by text that it has
# never seen: 20 means "as unsure as between 20 equally likely tokens". Tasks count right answers.
# `labkit score` prints this table for any model.

# %% tags=["nbval-ignore-output"]
from rich.console import Console

from labkit.evaluate.score_table import score_table

effort = Effort(tokens=1024, questions=16)
rows = [row for _, row in score(model, tokenizer, rtn_entries(), effort)]
Console(width=118, force_jupyter=False).print(score_table(rows, "Round-to-nearest"))

# %% [markdown]
# Each task asks 16 questions here, so one question is 6 points: a difference of one or two of them
# is chance, even where fewer bits seem to do better. `labkit score` takes more questions and more
# text, so its numbers differ. What the table must show on any machine:

# %%
mean = {row.method: sum(row.perplexity.values()) / 2 for row in rows}
right = {row.method: sum(row.tasks.values()) / 4 for row in rows}
claims = {
    "8 bits a row cost less than 1 %": mean["RTN int8 sym channel"] < 1.01 * mean["FP32"],
    "4 bits: finer is better": mean["RTN int4 sym group 64"] < mean["RTN int4 sym tensor"],
    "2 bits ruin the model": mean["RTN int2 sym channel"] > 3 * mean["FP32"],
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
assert all(claims.values())

# %%
SUSPECTS = {
    "8 bits, one scale a matrix": right["RTN int8 sym tensor"],
    "4 bits, one scale a matrix": right["RTN int4 sym tensor"],
    "2 bits, one scale a row": right["RTN int2 sym channel"],
}
lost = {label: right["FP32"] - value for label, value in SUSPECTS.items()}
first = next((label for label, value in lost.items() if value > 0.1), None)
guess.compare(first, correct=first)

# %% [markdown]
# ## The chart of the course
#
# Each point is one method: how many bits it *really* spends on a weight (scales counted), and what
# is left of the model. Every chapter adds a method that moves points down and to the left.

# %%
STYLES = {"tensor": "s", "channel": "o", "group": "^"}


def curves(ax, value):
    """One line for each granularity, and FP32 as a dashed level."""
    for name, marker in STYLES.items():
        line = [row for row in rows if name in row.method.split()]
        ax.plot([row.bits_per_weight for row in line], list(map(value, line)), marker, label=name)
        ax.lines[-1].set_linestyle("-")
    ax.axhline(value(rows[0]), linestyle="--", color="0.4", label="FP32")
    ax.set(xlabel="bits per weight, scales counted")
    ax.legend(title="one scale per")


# %%
fig, ax = figures.new()
curves(ax, lambda row: mean[row.method])
ax.set(yscale="log", ylabel="perplexity on held-out text")
figures.show(
    fig,
    alt="Perplexity stays level from 8 bits down, then climbs: first with one scale a matrix, "
    "last with one scale a group.",
)

# %% [markdown]
# Perplexity averages over easy and hard tokens. Tasks are less forgiving: one wrong digit is a
# wrong answer.

# %%
fig, ax = figures.new()
curves(ax, lambda row: 100 * right[row.method])
ax.set(ylabel="right answers, %", ylim=(-3, 103))
figures.show(
    fig,
    alt="Right answers stay near the FP32 level at 8 bits and fall to almost none at 2 bits; "
    "coarser scales fall first.",
)

# %% [markdown]
# Where the course takes you: the same model under every method, as `labkit score --all` recorded
# it on the machine that `data/results/score-all.json` names. By chapter 07 you can explain each
# point.

# %%
figures.show(
    score_chart(recorded_rows(RECORDED_ALL)),
    alt="Recorded: at 8 and 4 bits all careful methods lie near the FP32 level; at 3 bits GPTQ "
    "keeps much more of the model than rounding does.",
)

# %% [markdown]
# ## What breaks this
#
# Eight bits were harmless. Now one single weight of one matrix grows to 200 times the largest. The
# scale of the whole matrix has to stretch to reach it, and all the other weights round to nothing.


# %%
def with_outlier(name, weight):
    """The weight as it is, but with one huge entry in the first layer."""
    if name != next(iter(layers)):
        return weight
    changed = weight.clone()
    changed[0, 0] = 200 * weight.abs().max()
    return changed


outlier = map_weights(model, with_outlier)
for granularity in ("tensor", "channel"):
    _, reports = quantize_model(outlier, QuantScheme(8, granularity=granularity))
    print(f"one scale per {granularity}: signal to noise {reports[0].sqnr_db:.0f} dB")

# %% [markdown]
# The signal-to-noise ratio flatters the first: nearly all of its "signal" is the one huge weight.
# Count what is left of the others.

# %%
first_name = next(iter(layers))
for granularity in ("tensor", "channel"):
    _, reports = quantize_model(outlier, QuantScheme(8, granularity=granularity))
    codes = reports[0].quantized.codes[1:]
    zeros = (codes == 0).float().mean()
    print(f"one scale per {granularity}: {zeros:.0%} of the other rows is zero")

# %% [markdown]
# Outliers are the reason for half of the methods in this course. Chapter 03 confines them to a
# row or a group.

# %% [markdown]
# ## Meet the checker
#
# Exercises are checked against the meaning of the task, with random inputs that change at every
# run. A wrong answer gets a reason. Try one that you know to be wrong, too.

# %% [markdown] tags=["exercise-text"]
# ### Exercise 00.1 · Memory of the weights
#
# *3 minutes, difficulty 1 of 5.* A model has `billions` times 10⁹ weights of `bits` bits each. How
# many GiB do they take? One GiB is 2³⁰ bytes.
#
# Replace the `...` and run the cell. Stuck? Run `hint("00.1")` in a new cell; `reveal("00.1")`
# shows the answer.


# %% tags=["exercise-00.1"]
def weight_gib(billions, bits):
    """GiB (1 GiB = 2**30 bytes) taken by `billions` x 10**9 weights of `bits` bits each."""
    ...


check("00.1", weight_gib)

# %% [markdown]
# ## Map of the course
#
# | | chapter | question |
# |---|---|---|
# | 00 | you are here | What does quantization cost? |
# | 01 | [dtypes](01_dtypes.ipynb) | What can each format say, and where is it silent? |
# | 02 | [scale, zero-point](02_scale_zero_point.ipynb) | How does a number become an integer? |
# | 03 | [per channel](03_per_channel.ipynb) | How many numbers should share a scale? |

# %% [markdown]
# Your progress is kept on this machine. `labkit course status` shows it in a terminal.

# %%
course_progress()

# %% [markdown]
# ## Explain it in an interview

# %% [markdown] tags=["interview"]
# **What is quantization, in two sentences?**
#
# <details><summary>A model answer</summary>
#
# Weights (and perhaps activations) are stored as small integers together with a scale that many
# of them share, so that a real value is about scale times integer. The model gets smaller and
# needs less memory traffic, at the price of a rounding error of up to half a scale in each value.
#
# Key points: scale shared by a block; error bounded by half a step inside the range; memory
# traffic is what makes it faster when one token is generated at a time.
#
# </details>

# %% [markdown] tags=["interview"]
# **"We use 4 bits." Why is that not enough to know how good a model is?**
#
# <details><summary>A model answer</summary>
#
# Because the bits are only the number of levels. How many weights share a scale, how the scale was
# chosen, whether rounding was compensated (GPTQ), which layers were left alone, and which text it
# was measured on all move the result. In the table above, 4 bits with one scale a matrix and
# 4 bits with one scale for 64 weights are different models. Ask for bits per weight with
# metadata, and for perplexity and tasks beside the unquantized model in the same set-up.
#
# </details>

# %% [markdown] tags=["interview"]
# **Perplexity hardly moved after quantization. Can you ship?**
#
# <details><summary>A model answer</summary>
#
# Not yet. Perplexity is an average over all tokens, and most tokens are easy. Tasks that need
# every token right (arithmetic, copying a key, tracking state) can fail while the average stays.
# Measure tasks of your own domain beside perplexity, with enough questions for a confidence
# interval, and compare with the unquantized model on the same questions.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [A survey of quantization methods](https://arxiv.org/abs/2103.13630), Gholami and others, 2021:
#   sections II and III are chapters 02 and 03 of this course.
# - [The case for 4-bit precision](https://arxiv.org/abs/2212.09720), Dettmers and Zettlemoyer,
#   2022: quality against total bits, over many models.
