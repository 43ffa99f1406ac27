# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # OneRec in one notebook
#
# From a real interaction log (MovieLens-100k) to generated sessions: semantic IDs, training,
# constrained generation, evaluation against simple baselines. OneRec: Deng et al., 2025,
# arXiv:2502.18965.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("rec_jax") is None:  # on Colab: install the project first
    repository = "git+https://github.com/alignax/alignax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", repository], check=True)

# %% [markdown]
# ## The configuration
#
# A preset is a function that returns a full configuration. `demo` takes about ten minutes on two
# CPU cores and much less on a GPU; `demo_tiny` runs every stage in about a minute, with results
# not worth reading.

# %%
import dataclasses
import os
import pathlib

from rec_jax.presets import PRESETS

preset = os.environ.get("ALIGNAX_PRESET", "demo")
config = dataclasses.replace(PRESETS[preset](), run_dir=f"runs/notebook_{preset}")
config.model

# %% [markdown]
# ## Stage 1: the log and its sessions
#
# Ratings of at least 4 are positive. A user's last five positives are the test session, the five
# before are validation, all earlier ones are training data.

# %%
from rec_jax.stages import prepare

prepare.run(config)
log, data = prepare.load(config.run_dir)
log.items.head()

# %%
data.counts

# %% [markdown]
# ## Stage 2: semantic IDs
#
# Balanced residual K-means turns each item's embedding into codes, coarse to fine; a last level
# tells apart the items that agree on all others.

# %%
from rec_jax.stages import tokenize

tokenize.run(config)
index = tokenize.load(config.run_dir)
first = index.codes[0]
neighbours = [
    log.items["title"][item]
    for item in range(index.num_items)
    if (index.codes[item, :2] == first[:2]).all()
]
print(f"items whose first two codes are {first[:2].tolist()}: {neighbours}")

# %% [markdown]
# ## Stage 3: training
#
# The encoder reads the history, the decoder writes the session, code by code.

# %%
from rec_jax.jobs import run_pretrain

run_pretrain(config)

# %% [markdown]
# ## Stage 4: evaluation
#
# Every generated item exists: the beam search walks the catalogue's prefix tree. Intervals are
# bootstrap intervals over users.

# %%
from rec_jax.stages import evaluate

evaluate.run(config)
print((evaluate.load_folder(config.run_dir) / "report.txt").read_text())

# %% [markdown]
# ## Recommendations in words

# %%
from rec_jax.stages import report

report.run(config)
print(report.first_sample_text(config.run_dir))

# %%
from IPython.display import Image, display

for picture in sorted(pathlib.Path(config.run_dir, "report").glob("*.png")):
    display(Image(filename=str(picture)))
