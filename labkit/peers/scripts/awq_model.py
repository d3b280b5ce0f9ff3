"""AutoAWQ 0.2.9 on a whole Llama: what it chooses, what it loses, how long it takes.

Its fault on a CPU is mended here: `_compute_best_scale` keeps the weights that it will change as
`{k: v.cpu()}`, which on a CPU are the live weights themselves, so that every trial of the search
starts from the ruins of the one before. The search then sees clones.
"""

import time
import warnings

import torch

warnings.filterwarnings("ignore")

from awq import AutoAWQForCausalLM  # noqa: E402
from awq.quantize import quantizer as awq_quantizer  # noqa: E402
from awq.utils.module import get_named_linears  # noqa: E402

awq_quantizer.tqdm = lambda items, **_: items


class Watched(awq_quantizer.AwqQuantizer):
    """Their quantizer, with the fault mended and its choices kept."""

    mend = True

    def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, linears, *rest):
        self.losses = []
        if self.mend:
            keep = module2inspect.state_dict
            module2inspect.state_dict = lambda: {k: v.clone() for k, v in keep().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, linears, *rest)
        finally:
            module2inspect.__dict__.pop("state_dict", None)

    def _compute_loss(self, *args, **kwargs):
        loss = super()._compute_loss(*args, **kwargs)
        self.losses.append(loss)
        return loss

    def _search_best_scale(self, module, prev_op, layers, inp, **rest):
        found = super()._search_best_scale(module, prev_op, layers, inp, **rest)
        block = next(i for i, m in enumerate(self.modules) if m is module)
        source, linears, scales = found
        self.found.append((block, source, list(linears), scales.clone(), list(self.losses)))
        return found


def main(tensors, settings):
    """`tensors["ids"]` int64 [sequences, length]; settings: model (a folder), bits, group_size,
    zero_point, and if wanted duo, clip, mend, blocks (the first ones alone).

    Returns "scales.BLOCK.SOURCE" and the weights of the decoder blocks by name (norms with the
    scales folded in, linears rounded to their grid and back); as results the loss of every trial
    by "BLOCK.SOURCE", and the seconds from the ids to the rounded weights.
    """
    ids = tensors["ids"]
    held = AutoAWQForCausalLM.from_pretrained(
        settings["model"], torch_dtype=torch.float32, use_cache=False, device_map=None
    )
    layers = held.model.model.layers
    held.model.model.layers = layers[: settings.get("blocks") or len(layers)]
    Watched.found, Watched.mend = [], settings.get("mend", True)
    config = {
        "zero_point": settings["zero_point"],
        "q_group_size": settings["group_size"],
        "w_bit": settings["bits"],
        "version": "GEMM",
    }
    start, busy = time.perf_counter(), time.process_time()
    held.quantize(
        None,
        quant_config=config,
        calib_data=ids.tolist(),
        duo_scaling=settings.get("duo", True),
        apply_clip=settings.get("clip", True),
        export_compatible=True,
        max_calib_samples=len(ids),
        max_calib_seq_len=ids.shape[1],
        quantizer_cls=Watched,
    )
    linears = get_named_linears(held.model.model.layers)
    for linear in linears.values():
        # As their `_apply_quant` does, in float16; without the packing.
        whole = held.quantizer.pseudo_quantize_tensor(linear.weight.data.half())[0]
        linear.weight.data = whole.float()
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - busy
    out = {name: tensor for name, tensor in held.model.state_dict().items() if ".layers." in name}
    losses = {}
    for block, source, names, scales, history in Watched.found:
        out[f"scales.{block}.{source}"] = scales.float()
        losses[f"{block}.{source}"] = {"linears": names, "losses": history}
    return out, {"seconds": seconds, "cpu_seconds": cpu_seconds, "searches": losses}
