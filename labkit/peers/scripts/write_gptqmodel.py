"""GPTQModel quantizes a model and writes folders.

tensors: tokens int64 [sequences, length]. settings: source, and folders: by a name of your choice,
{folder, config: fields of its QuantizeConfig}. Returns nothing; `read_gptqmodel` says what it makes
of them.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main(tensors, settings):
    for wanted in settings["folders"].values():
        write(tensors["tokens"], settings["source"], wanted)
    return {}, {}


def write(tokens, source, settings):
    config = QuantizeConfig(**settings["config"], device="cpu")
    held = GPTQModel.load(source, config)
    rows = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in tokens]
    held.quantize(rows, batch_size=1, backend=BACKEND.GPTQ_TORCH)
    held.save(settings["folder"])
