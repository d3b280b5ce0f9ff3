"""torchao 0.18's quantization-aware training of a causal LM: prepare, train, convert.

Runs: name, source (folder of a model), batches (name of a tensor int64 [steps, rows, length + 1]),
heldout (names of tensors int64 [rows, length + 1]), bits, group_size (0: by channel), inputs (true:
8 bits token by token), lr, warmup, clip_norm. The layers of the decoder blocks are quantized; all
parameters learn, by AdamW; the learning rate rises over `warmup` steps and falls linearly to 0.

Returns for each run: losses (of each step), and the mean held-out cross-entropies in nats `float`
(before), `start` (prepared, untrained), `trained` and `converted`, by the name of the tensor.
"""

import torch
from torch.nn import functional
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import QATConfig
from transformers import AutoModelForCausalLM


def main(tensors, settings):
    results = {}
    for run in settings["runs"]:
        heldout = {name: tensors[name] for name in run["heldout"]}
        results[run["name"]] = one(run, tensors[run["batches"]], heldout)
    return {}, results


def one(run, batches, heldout):
    model = AutoModelForCausalLM.from_pretrained(run["source"], dtype=torch.float32)
    base = config_of(run)
    figures = {"float": evaluated(model, heldout)}
    quantize_(model, QATConfig(base, step="prepare"), filter_fn=in_a_block)
    figures["start"] = evaluated(model, heldout)
    figures["losses"] = train(model, batches, run)
    figures["trained"] = evaluated(model, heldout)
    quantize_(model, QATConfig(base, step="convert"))
    figures["converted"] = evaluated(model, heldout)
    return figures


def config_of(run):
    dtype = getattr(torch, f"int{run['bits']}")
    granularity = PerGroup(run["group_size"]) if run["group_size"] else PerAxis(0)
    if run["inputs"]:
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=granularity
        )
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)


def in_a_block(module, name):
    return isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"


def train(model, batches, run):
    model.train().requires_grad_(True)
    steps, warmup = len(batches), run["warmup"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run["lr"], betas=(0.9, 0.95), weight_decay=0.0
    )
    losses = []
    for step, tokens in enumerate(batches):
        rising, falling = (step + 1) / warmup, (steps - step) / (steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = run["lr"] * min(1.0, rising, falling)
        loss = cross_entropy(model, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def cross_entropy(model, tokens):
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluated(model, heldout):
    model.eval()
    figures = {}
    for name, rows in heldout.items():
        losses = [cross_entropy(model, part) * len(part) for part in rows.split(16)]
        figures[name] = float(sum(losses) / len(rows))
    return figures
