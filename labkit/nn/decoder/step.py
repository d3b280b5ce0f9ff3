"""One pass of some tokens through all layers: a single compiled function for every thread.

All threads run `forward` side by side. Between two meetings each writes only what is its own: rows
of a product, tokens to be rounded, key heads with their queries.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.parallel import compiled
from labkit.kernels.cpu.runs import RUN, round_run, sum_run
from labkit.nn.decoder.activations import gate, normalize
from labkit.nn.decoder.attend import attend_head, keep, prepare_head
from labkit.nn.decoder.team import meet
from labkit.quantize.lanes import LANES

# Columns of the table of matrices, and its rows: so many a layer, the head last.
ADDRESS, PANELS, COLUMNS, PANEL_BYTES, KIND = range(5)
Q, K, V, OUT, GATE, UP, DOWN = range(7)
IN_A_LAYER = 7
_FIRST = np.int64(0)


@compiled
def _multiply(part, count, table, eight, x, work, out, add):
    """out = x @ a matrix's rows that are this thread's; ``add``: 1: onto what is there.

    work: (codes, scale, less) of x as `panel_product` has them, and sums of each thread's own.
    """
    codes, scale, less, spare = work
    panels, size = table[PANELS], table[PANEL_BYTES]
    columns, kind = table[COLUMNS], table[KIND]
    for panel in range(part * panels // count, (part + 1) * panels // count):
        place = table[ADDRESS] + panel * size
        if not add:
            panel_product(kind, place, columns, eight, x, codes, scale, less, out, panel * LANES)
            continue
        own = spare[part]
        panel_product(kind, place, columns, eight, x, codes, scale, less, own, _FIRST)
        for token in range(x.shape[0]):
            for lane in range(LANES):
                out[token, panel * LANES + lane] += own[token, lane]


@compiled
def _round_blocks(row, first, last, eight, codes, scale, less):
    """Make blocks ``first`` … ``last`` - 1 of a token's x ready for packed weights."""
    for block in range(first, last):
        if eight:
            round_run(row, block, codes, scale, less)
        else:
            sum_run(row, block, less)


@compiled
def _round(part, count, x, columns, eight, work):
    """Threads take blocks of all tokens."""
    codes, scale, less = work[0], work[1], work[2]
    blocks = columns // RUN
    first, last = part * blocks // count, (part + 1) * blocks // count
    for token in range(x.shape[0]):
        _round_blocks(x[token], first, last, eight, codes[token], scale[token], less[token])


@compiled
def _norm_and_round(part, count, x, columns, weight, epsilon, eight, normed, work):
    """RMSNorm of whole tokens, and what `_round` does; threads take tokens."""
    codes, scale, less = work[0], work[1], work[2]
    first, last = np.int64(0), columns // RUN
    for token in range(part, x.shape[0], count):
        row = normed[token]
        normalize(x[token], columns, weight, epsilon, row)
        _round_blocks(row, first, last, eight, codes[token], scale[token], less[token])


@compiled
def _attention(part, count, layer, past, window, factor, epsilon, qkv, cache, extra, scores):
    """RoPE, the cache's new rows, attention: key heads are shared out over threads."""
    q, k, v, out = qkv
    keys, values = cache
    bias, has_bias, norms, has_norms, cosine, sine = extra
    kv_heads, dim = keys.shape[0], keys.shape[2]
    tokens, repeat = q.shape[0], (bias.shape[1] // dim - 2 * kv_heads) // kv_heads
    row = bias[layer]
    for head in range(part * kv_heads // count, (part + 1) * kv_heads // count):
        at, own = head * dim, repeat * head * dim
        k_bias = row[(repeat * kv_heads + head) * dim : (repeat * kv_heads + head + 1) * dim]
        v_first = ((repeat + 1) * kv_heads + head) * dim
        for token in range(tokens):
            place = past + token
            key, value = k[token, at : at + dim], v[token, at : at + dim]
            prepare_head(
                key,
                k_bias,
                has_bias,
                norms[layer, 1],
                has_norms,
                epsilon,
                cosine[place],
                sine[place],
            )
            if has_bias:
                for column in range(dim):
                    value[column] += row[v_first + column]
            keep(key, keys[head, place])
            keep(value, values[head, place])
        for token in range(tokens):
            place = past + token
            first = max(0, place + 1 - window) if window > 0 else 0
            for one in range(own, own + repeat * dim, dim):
                query = q[token, one : one + dim]
                prepare_head(
                    query,
                    row[one : one + dim],
                    has_bias,
                    norms[layer, 0],
                    has_norms,
                    epsilon,
                    cosine[place],
                    sine[place],
                )
                attend_head(
                    query,
                    keys[head],
                    values[head],
                    first,
                    place + 1,
                    factor,
                    scores[part],
                    out[token, one : one + dim],
                )


@compiled
def forward(
    part,
    count,
    meeting,
    table,
    norms,
    extra,
    caches,
    past,
    window,
    epsilon,
    eight,
    x,
    buffers,
    work,
    scores,
    wanted,
    logits,
):
    """Send x through the layers in place, and the last ``wanted`` tokens through the head.

    Args:
        part, count, meeting: which thread this is, of how many, and where they meet.
        table: int64 [layers * 7 + 1, 5]: matrices by address.
        norms: float32 [2 * layers + 1, hidden].
        extra: biases, head norms and RoPE's tables; see `Decoder`.
        caches: keys and values, uint16 [layers, kv_heads, capacity, dim], float16's bits.
        past: tokens that the cache holds already.
        window: how many tokens a token sees; 0: all.
        x: float32 [tokens, hidden], the tokens' embeddings; overwritten.
        buffers, work, scores: memory to work in.
        logits: float32 [wanted, panels * 16].
    """
    normed, q, k, v, mixed, gates, ups = buffers
    keys, values = caches
    tokens, hidden, dim = x.shape[0], norms.shape[1], keys.shape[3]
    factor = np.float32(1.0 / np.sqrt(dim))
    layers = keys.shape[0]
    # Not literals: each literal would have everything below compiled once more.
    new, onto = np.int64(0), np.int64(1)
    for layer in range(layers):
        m = IN_A_LAYER * layer
        norm = norms[2 * layer]
        _norm_and_round(part, count, x, hidden, norm, epsilon, eight, normed, work)
        meet(meeting, count)
        _multiply(part, count, table[m + Q], eight, normed, work, q, new)
        _multiply(part, count, table[m + K], eight, normed, work, k, new)
        _multiply(part, count, table[m + V], eight, normed, work, v, new)
        meet(meeting, count)
        _attention(
            part,
            count,
            layer,
            past,
            window,
            factor,
            epsilon,
            (q, k, v, mixed),
            (keys[layer], values[layer]),
            extra,
            scores,
        )
        meet(meeting, count)
        _round(part, count, mixed, table[m + OUT, COLUMNS], eight, work)
        meet(meeting, count)
        _multiply(part, count, table[m + OUT], eight, mixed, work, x, onto)
        meet(meeting, count)
        norm = norms[2 * layer + 1]
        _norm_and_round(part, count, x, hidden, norm, epsilon, eight, normed, work)
        meet(meeting, count)
        _multiply(part, count, table[m + GATE], eight, normed, work, gates, new)
        _multiply(part, count, table[m + UP], eight, normed, work, ups, new)
        panels = table[m + GATE, PANELS]
        first, last = part * panels // count * LANES, (part + 1) * panels // count * LANES
        for token in range(tokens):
            gate(gates[token], ups[token], first, last)
        meet(meeting, count)
        _round(part, count, gates, table[m + DOWN, COLUMNS], eight, work)
        meet(meeting, count)
        _multiply(part, count, table[m + DOWN], eight, gates, work, x, onto)
        meet(meeting, count)
    last = x[tokens - wanted :]
    norm = norms[2 * layers]
    _norm_and_round(part, count, last, hidden, norm, epsilon, eight, normed, work)
    meet(meeting, count)
    head = table[IN_A_LAYER * layers]
    _multiply(part, count, head, eight, normed[:wanted], work, logits, new)
    meet(meeting, count)
