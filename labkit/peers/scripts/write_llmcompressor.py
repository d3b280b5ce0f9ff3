"""llm-compressor quantizes a model without data and writes folders, in compressed-tensors.

tensors: tokens int64 [sequences, length]. settings: source, and folders: by a name of your choice,
{folder, groups: config_groups as its QuantizationModifier takes them}. Returns "FOLDER/logits"
float32 of the model that it holds.
"""

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM


def main(tensors, settings):
    return {
        f"{key}/logits": write(tensors["tokens"], settings["source"], wanted)
        for key, wanted in settings["folders"].items()
    }, {}


def write(tokens, source, settings):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    recipe = QuantizationModifier(config_groups=settings["groups"], ignore=["lm_head"])
    oneshot(model=model, recipe=recipe)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
    model.save_pretrained(settings["folder"], save_compressed=True)
    return logits
