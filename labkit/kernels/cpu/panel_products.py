"""A panel of sixteen rows with one token, or with four that share the work of unpacking.

    y[row] = sum over chunks of  s * dx * (codes . q)  -  m * (sum of x)          8-bit activations
    y[row] = sum over chunks of  s * (codes . x)       -  m * (sum of x)         float activations

where q are x's codes and dx their scale (a scale for each 32 columns). The lanes are the rows.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import address_of, ask_ahead, ask_codes_ahead, number_at
from labkit.kernels.cpu.loads import splat_word
from labkit.kernels.cpu.operands import floats_from, hand_over
from labkit.kernels.cpu.panel_blocks import q4_0_one, q4_k_one, q5_k_one, q6_k_one, q8_0_one
from labkit.kernels.cpu.panel_codes import Q4_0, Q4_K, Q5_K, Q8_0, field, unpack
from labkit.kernels.cpu.panel_floats import LAST_FLOAT, floats_four, floats_one, four_rows
from labkit.kernels.cpu.panel_look_ups import q4_0_floats, q4_k_floats
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import byte_dot, multiply_add
from labkit.kernels.gguf_panels import ROWS
from labkit.quantize.lanes import splat, store, to_floats

_ZERO, _NONE = np.float32(0), np.int32(0)


@inlined
def _dot16(codes, first, x, place):
    """Sixteen columns: four registers of codes with sixteen int8 of x."""
    found = byte_dot(splat(_NONE), codes[first], splat_word(x, place))
    found = byte_dot(found, codes[first + 1], splat_word(x, place + 4))
    found = byte_dot(found, codes[first + 2], splat_word(x, place + 8))
    return byte_dot(found, codes[first + 3], splat_word(x, place + 12))


@inlined
def _add_chunk(so_far, chunk, codes, s0, s1, m0, m1, x, scale, less):
    """so_far + the next 32 columns with one token's codes; its scales and sums by address."""
    dx = number_at(scale + 4 * chunk)
    a = to_floats(_dot16(codes, 0, x, 32 * chunk))
    b = to_floats(_dot16(codes, 4, x, 32 * chunk + 16))
    so_far = multiply_add(a, s0 * dx, so_far)
    so_far = multiply_add(b, s1 * dx, so_far)
    so_far = multiply_add(m0, number_at(less + 8 * chunk), so_far)
    return multiply_add(m1, number_at(less + 8 * chunk + 4), so_far)


@inlined
def _chunk_ahead(kind, panel, chunk, eight):
    """Ask for as many lines as the 32 columns of a chunk take; ``eight``: for 8-bit activations."""
    size = 288
    if kind == Q8_0:
        size = 544
    elif kind == Q5_K:
        size = 352
    elif kind != Q4_0 and kind != Q4_K:
        size = 420
    for line in range(size * chunk >> 6, size * (chunk + 1) >> 6):
        if eight:
            ask_codes_ahead(panel + 64 * line)
        else:
            ask_ahead(panel + 64 * line)


@compiled
def codes_one(kind, panel, columns, x, scale, less, token, out, place):
    """out[token, place : place + 16] = the panel's rows with a token's 8-bit activations."""
    if kind == Q4_0:
        q4_0_one(panel, columns >> 5, x, scale, less, token, out, place)
    elif kind == Q8_0:
        q8_0_one(panel, columns >> 5, x, scale, less, token, out, place)
    elif kind == Q4_K:
        q4_k_one(panel, columns >> 8, x, scale, less, token, out, place)
    elif kind == Q5_K:
        q5_k_one(panel, columns >> 8, x, scale, less, token, out, place)
    else:
        q6_k_one(panel, columns >> 8, x, scale, less, token, out, place)


@compiled
def codes_four(kind, panel, chunks, x, scale, less, token, out, place):
    """The same for four tokens from ``token`` on."""
    f0 = f1 = f2 = f3 = splat(_ZERO)
    x0, x1, x2, x3 = x[token], x[token + 1], x[token + 2], x[token + 3]
    d0, d1, d2, d3 = four_rows(scale, token)
    n0, n1, n2, n3 = four_rows(less, token)
    for chunk in range(chunks):
        if token == 0:  # for the next four the panel is in the cache
            _chunk_ahead(kind, panel, chunk, True)
        codes, s0, s1, m0, m1 = unpack(kind, panel, chunk)
        f0 = _add_chunk(f0, chunk, codes, s0, s1, m0, m1, x0, d0, n0)
        f1 = _add_chunk(f1, chunk, codes, s0, s1, m0, m1, x1, d1, n1)
        f2 = _add_chunk(f2, chunk, codes, s0, s1, m0, m1, x2, d2, n2)
        f3 = _add_chunk(f3, chunk, codes, s0, s1, m0, m1, x3, d3, n3)
    store(out[token], place, f0)
    store(out[token + 1], place, f1)
    store(out[token + 2], place, f2)
    store(out[token + 3], place, f3)


@inlined
def _mix16(codes, first, x):
    """Sixteen columns of codes with sixteen float32 from the address ``x`` on."""
    a = b = splat(_ZERO)
    for k in range(4):
        word, at = codes[first + k], x + 16 * k
        a = multiply_add(field(word, 0), number_at(at), a)
        b = multiply_add(field(word, 1), number_at(at + 4), b)
        a = multiply_add(field(word, 2), number_at(at + 8), a)
        b = multiply_add(field(word, 3), number_at(at + 12), b)
    return a + b


@inlined
def _add_floats(so_far, chunk, codes, s0, s1, m0, m1, x, less):
    so_far = multiply_add(_mix16(codes, 0, x + 128 * chunk), s0, so_far)
    so_far = multiply_add(_mix16(codes, 4, x + 128 * chunk + 64), s1, so_far)
    so_far = multiply_add(m0, number_at(less + 8 * chunk), so_far)
    return multiply_add(m1, number_at(less + 8 * chunk + 4), so_far)


@compiled
def mixed_one(kind, panel, chunks, x, less, token, out, place):
    """Packed weights with a token's float32 activations."""
    if kind == Q4_0:
        q4_0_floats(panel, chunks, x, token, out, place)
        return
    if kind == Q4_K:
        q4_k_floats(panel, chunks, x, less, token, out, place)
        return
    found, floats, minus = splat(_ZERO), address_of(x[token]), address_of(less[token])
    for chunk in range(chunks):
        _chunk_ahead(kind, panel, chunk, False)
        codes, s0, s1, m0, m1 = unpack(kind, panel, chunk)
        found = _add_floats(found, chunk, codes, s0, s1, m0, m1, floats, minus)
    store(out[token], place, found)


@compiled
def mixed_four(kind, panel, chunks, x, less, token, out, place):
    """The same for four tokens from ``token`` on."""
    f0 = f1 = f2 = f3 = splat(_ZERO)
    x0, x1, x2, x3 = four_rows(x, token)
    n0, n1, n2, n3 = four_rows(less, token)
    for chunk in range(chunks):
        if token == 0:
            _chunk_ahead(kind, panel, chunk, False)
        codes, s0, s1, m0, m1 = unpack(kind, panel, chunk)
        f0 = _add_floats(f0, chunk, codes, s0, s1, m0, m1, x0, n0)
        f1 = _add_floats(f1, chunk, codes, s0, s1, m0, m1, x1, n1)
        f2 = _add_floats(f2, chunk, codes, s0, s1, m0, m1, x2, n2)
        f3 = _add_floats(f3, chunk, codes, s0, s1, m0, m1, x3, n3)
    store(out[token], place, f0)
    store(out[token + 1], place, f1)
    store(out[token + 2], place, f2)
    store(out[token + 3], place, f3)


@compiled
def panel_product(kind, panel, columns, eight, x, codes, scale, less, out, place):
    """out[:, place : place + 16] = x @ the panel's rows, for all tokens.

    Args:
        kind: of the panel (`NUMBERS`).
        panel: the address of its bytes.
        eight: whether packed weights meet x's codes, and not its floats.
        x: float32 [tokens, columns or more]; codes uint8, of its shape;
            scale float32 [tokens, columns / 32]; less float32 [tokens, columns / 16]: minus the
            sum of sixteen columns of what is multiplied.
        out: float32 [tokens, place + 16 or more].
    """
    tokens, token, chunks = x.shape[0], np.int64(0), columns >> 5
    while token < tokens:
        if tokens - token >= 4:
            if kind <= LAST_FLOAT:
                floats_four(kind, panel, columns, x, token, out, place)
            elif eight:
                codes_four(kind, panel, chunks, codes, scale, less, token, out, place)
            else:
                mixed_four(kind, panel, chunks, x, less, token, out, place)
            token += 4
        else:
            if kind <= LAST_FLOAT:
                floats_one(kind, panel, columns, x, token, out, place)
            elif eight:
                codes_one(kind, panel, columns, codes, scale, less, token, out, place)
            else:
                mixed_one(kind, panel, chunks, x, less, token, out, place)
            token += 1


@compiled
def panels_of_part(part, count, kind, data, eight, x, codes, scale, less, y, y_size, rows, found):
    """The panels of one of ``count`` parts with all tokens.

    Args:
        data: uint8 [panels, blocks, bytes].
        eight, codes, scale, less: as in `panel_product`; x: float32 [tokens, columns].
        y, y_size, rows: the result, as in `operands.hand_over`.
        found: float32 [tokens, 16 * panels] to sum in; [0, 16 * panels]: sums belong in y itself.
    """
    tokens, columns, panels = x.shape[0], x.shape[1], data.shape[0]
    start, size = address_of(data), data.shape[1] * data.shape[2]
    first, last = part * panels // count, (part + 1) * panels // count
    as_wanted = found.shape[0] == 0
    out = floats_from(y if as_wanted else address_of(found), tokens, ROWS * panels)
    for panel in range(first, last):
        place = start + panel * size
        panel_product(kind, place, columns, eight, x, codes, scale, less, out, panel * ROWS)
    if not as_wanted:
        hand_over(found, first * ROWS, last * ROWS, y, y_size, tokens, rows)
