# %% [markdown]
# # 00 · A sample
#
# **What does a notebook of the course look like?**
#
# **You will be able to**
# - see every part of a notebook once
#
# **Time:** 5 minutes · **Before this:** nothing

# %%
import random

import ipywidgets
import torch

from labkit.course import check, figures
from labkit.course.prediction import predict

# %%
guess = predict("How far does the largest of ten normal numbers lie out?", ["under 1", "over 1"])

# %%
values = torch.randn(10, generator=torch.Generator().manual_seed(0))
largest = round(float(values.abs().max()), 2)
guess.compare(largest, correct="over 1" if largest > 1 else "under 1")


# %%
def line(slope):
    fig, ax = figures.new()
    ax.plot([0, 1], [0, slope])
    ax.set(ylim=(0, 10))
    return fig


figures.show(line(2), alt="A line that rises from 0 to 2.")

# %%
slider = ipywidgets.IntSlider(value=3, min=1, max=9, description="slope")
picture = ipywidgets.HTML()


def redraw(change=None):
    picture.value = figures.to_html(line(slider.value), f"A line that rises to {slider.value}.")


slider.observe(redraw, names="value")
redraw()
figures.show_widget(ipywidgets.VBox([slider, picture]), alt="A slider for the slope of a line.")

# %%
before = picture.value
slider.value = 5
print("the picture changed:", picture.value != before)
slider.value = 3

# %% tags=["nbval-ignore-output"]
print("different in every run:", random.random())

# %%
assert 0 <= random.random() < 1
print("between 0 and 1")

# %% [markdown] tags=["exercise-text"]
# ### Exercise 00.1 · Memory of the weights
# *3 minutes, difficulty 1 of 5.* Return the memory in GiB.


# %% tags=["exercise-00.1"]
def weight_gib(billions, bits):
    """GiB (1 GiB = 2**30 bytes) taken by `billions` x 10**9 weights of `bits` bits each."""
    ...


check("00.1", weight_gib)

# %% [markdown]
# ## Explain it in an interview

# %% [markdown] tags=["interview"]
# **Why does a notebook need a lint?**
#
# <details><summary>A model answer</summary>
#
# Because nobody reads every output on every change.
#
# </details>

# %% [markdown]
# ## What to read
#
# - [nbval](https://nbval.readthedocs.io): how outputs are compared.
