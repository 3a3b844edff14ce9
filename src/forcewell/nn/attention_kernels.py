"""Triton kernels for the messages of the Equivariant Transformer: filters, attention and sums over neighbours at once.

One program works for one atom and one head, whose channels meet no others: it computes the filters of its neighbours from
their distances, block by block, and nothing per pair is ever written to memory. Neighbour lists are symmetric, and a pair's
filters are those of both directions; so in reverse the program also gathers what its atom sent, and nothing is scattered.

Every number in ``_reverse`` and ``_forward`` may be dual, a value and its derivative along given changes of all inputs. The
reverse pass of the reverse pass, which training on forces needs, is the derivative of both along what comes in: no
second-order formulas are written anywhere (as in kernels/layers.h for the CPU).
"""

from __future__ import annotations

import triton
import triton.language as tl

# A dual number is a pair; without DUAL its second part is never used.


@triton.jit
def _times(a, b, DUAL: tl.constexpr):
    if DUAL:
        return a[0] * b[0], a[1] * b[0] + a[0] * b[1]
    else:
        return a[0] * b[0], a[1]


@triton.jit
def _plus(a, b):
    return a[0] + b[0], a[1] + b[1]


@triton.jit
def _sum(a):
    """(B, D) -> (B,)."""
    return tl.sum(a[0], 1), tl.sum(a[1], 1)


@triton.jit
def _column(a):
    return a[0][:, None], a[1][:, None]


@triton.jit
def _read(values, changes, at, DUAL: tl.constexpr):
    value = tl.load(values + at)
    if DUAL:
        return value, tl.load(changes + at)
    else:
        return value, value


@triton.jit
def _read3(values, changes, at, C, DUAL: tl.constexpr):
    """x, y and z of vectors, C apart."""
    return _read(values, changes, at, DUAL), _read(values, changes, at + C, DUAL), _read(values, changes, at + 2 * C, DUAL)


@triton.jit
def _dot3(a, b, DUAL: tl.constexpr):
    return _plus(_plus(_times(a[0], b[0], DUAL), _times(a[1], b[1], DUAL)), _times(a[2], b[2], DUAL))


@triton.jit
def _given(at):
    """A number that does not change."""
    value = tl.load(at)
    return value, tl.zeros_like(value)


@triton.jit
def _given3(at, C):
    return _given(at), _given(at + C), _given(at + 2 * C)


@triton.jit
def _chosen(a, DUAL: tl.constexpr):
    if DUAL:
        return a[1]
    else:
        return a[0]


@triton.jit
def _silu(z, DUAL: tl.constexpr):
    """x sigmoid(x) and its first derivative, both dual."""
    s = tl.sigmoid(z[0])
    first = s * (1 + z[0] * (1 - s))
    second = s * (1 - s) * (2 + z[0] * (1 - 2 * s))
    if DUAL:
        return (z[0] * s, first * z[1]), (first, second * z[1])
    else:
        return (z[0] * s, s), (first, s)


@triton.jit
def _pair(displacements, changes, senders, place, inside, cutoff, DUAL: tl.constexpr):
    """Senders (B,), distances and unit vectors (B, 1) of neighbours; those that are not ``inside`` the list lie beyond the cutoff."""
    sender, place, inside = tl.load(senders + place, mask=inside, other=0), place[:, None], inside[:, None]
    x = tl.load(displacements + 3 * place, mask=inside, other=2 * cutoff)
    y = tl.load(displacements + 3 * place + 1, mask=inside, other=0.0)
    z = tl.load(displacements + 3 * place + 2, mask=inside, other=0.0)
    r = tl.sqrt(x * x + y * y + z * z)
    x, y, z = x / r, y / r, z / r
    if DUAL:
        dx = tl.load(changes + 3 * place, mask=inside, other=0.0)
        dy = tl.load(changes + 3 * place + 1, mask=inside, other=0.0)
        dz = tl.load(changes + 3 * place + 2, mask=inside, other=0.0)
        dr = x * dx + y * dy + z * dz
        return sender, (r, dr), ((x, (dx - x * dr) / r), (y, (dy - y * dr) / r), (z, (dz - z * dr) / r))
    else:
        return sender, (r, r), ((x, x), (y, y), (z, z))


@triton.jit
def _radial(r, means, betas, cutoff, alpha, R: tl.constexpr):
    """Envelope and its slope (B, 1), dual, and the basis (B, R) with two derivatives (nn/radial.py); zero beyond the cutoff."""
    r, dr = r
    k = tl.arange(0, R)
    mean, beta = tl.load(means + k)[None, :], tl.load(betas + k)[None, :]
    w = 3.141592653589793 / cutoff
    near = (r < cutoff).to(tl.float32)
    f, f1, f2 = near * 0.5 * (tl.cos(w * r) + 1), near * -0.5 * w * tl.sin(w * r), near * -0.5 * w * w * tl.cos(w * r)
    decay = tl.exp(-alpha * r)
    exponent = -beta * (decay - mean) * (decay - mean)
    g = tl.where(exponent < -40.0, 0.0, tl.exp(exponent))
    t = 2 * alpha * beta * decay * (decay - mean)
    g1 = g * t
    g2 = g1 * t - g * 2 * alpha * alpha * beta * decay * (2 * decay - mean)
    return (f, f1 * dr), (f1, f2 * dr), (f * g, f1 * g + f * g1, f2 * g + 2 * f1 * g1 + f * g2)


@triton.jit
def _map(basis, weight, rows, R: tl.constexpr, PRECISION: tl.constexpr):
    """(B, R) times ``rows`` of the filters' weight: (B, D)."""
    return tl.dot(basis, tl.load(weight + rows[None, :] * R + tl.arange(0, R)[:, None]), input_precision=PRECISION)


@triton.jit
def _filter(basis, dr, weight, bias, rows, R: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr):
    """SiLU of one of the four filters, and its derivative by what goes into it, both dual."""
    z = _map(basis[0], weight, rows, R, PRECISION) + tl.load(bias + rows)[None, :]
    if DUAL:
        return _silu((z, _map(basis[1], weight, rows, R, PRECISION) * dr), DUAL)
    else:
        return _silu((z, z), DUAL)


@triton.jit
def _filters(basis, dr, weight, bias, c, C, R: tl.constexpr, VECTORS: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr):
    """Those of the key and of the three values. Without VECTORS nobody reads the second value's, and the third's stands in."""
    key = _filter(basis, dr, weight, bias, c, R, DUAL, PRECISION)
    first = _filter(basis, dr, weight, bias, C + c, R, DUAL, PRECISION)
    third = _filter(basis, dr, weight, bias, 3 * C + c, R, DUAL, PRECISION)
    second = third
    if VECTORS:
        second = _filter(basis, dr, weight, bias, 2 * C + c, R, DUAL, PRECISION)
    return key, first, second, third


@triton.jit
def _slope(bar, basis, dr, weight, rows, R: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr):
    """Gradient by the distance (B, 1) from that by a filter's input (B, D), dual."""
    slope = _map(basis[1], weight, rows, R, PRECISION)
    if DUAL:
        return _column(_sum(_times(bar, (slope, _map(basis[2], weight, rows, R, PRECISION) * dr), DUAL)))
    else:
        return _column(_sum(_times(bar, (slope, slope), DUAL)))


@triton.jit
def _node(node, dnode, at, C, DUAL: tl.constexpr):
    """Query, key and three values of atoms."""
    v1, v2, v3 = _read3(node, dnode, at + 2 * C, C, DUAL)
    return _read(node, dnode, at, DUAL), _read(node, dnode, at + C, DUAL), v1, v2, v3


@triton.jit
def _logit(query, key, filter, DUAL: tl.constexpr):
    """SiLU(Σ_d q k f) and its slope, (B, 1) dual."""
    return _silu(_column(_sum(_times(query, _times(key, filter, DUAL), DUAL))), DUAL)


@triton.jit
def _store3(at, x, y, z, apart, mask):
    tl.store(at, x, mask=mask)
    tl.store(at + apart, y, mask=mask)
    tl.store(at + 2 * apart, z, mask=mask)


@triton.jit(do_not_specialize=["K"])  # which changes with every batch
def _forward(
    node, dnode, vectors, dvectors, displacements, ddisplacements, senders, degrees, weight, bias, means, betas, scalars_out, vectors_out,
    K, C, cutoff, alpha,
    R: tl.constexpr, D: tl.constexpr, B: tl.constexpr, VECTORS: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over neighbours of scalar and vector messages; with DUAL their derivatives instead."""
    i, c = tl.program_id(0), tl.program_id(1) * D + tl.arange(0, D)
    query = _read(node, dnode, i * 5 * C + c[None, :], DUAL)
    scalars, x, y, z = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32), tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    for start in range(0, tl.load(degrees + i), B):
        k = start + tl.arange(0, B)
        j, r, u = _pair(displacements, ddisplacements, senders, i * K + k, k < K, cutoff, DUAL)
        m, _, basis = _radial(r, means, betas, cutoff, alpha, R)
        fk, f1, f2, f3 = _filters(basis, r[1], weight, bias, c, C, R, VECTORS, DUAL, PRECISION)
        _, key, v1, v2, v3 = _node(node, dnode, j[:, None] * 5 * C + c[None, :], C, DUAL)
        activated, _ = _logit(query, key, fk[0], DUAL)
        s1 = _times(_times(v1, f1[0], DUAL), _times(activated, m, DUAL), DUAL)
        scalars += tl.sum(_chosen(s1, DUAL), 0)
        s3 = _times(_times(v3, f3[0], DUAL), m, DUAL)
        x += tl.sum(_chosen(_times(s3, u[0], DUAL), DUAL), 0)
        y += tl.sum(_chosen(_times(s3, u[1], DUAL), DUAL), 0)
        z += tl.sum(_chosen(_times(s3, u[2], DUAL), DUAL), 0)
        if VECTORS:
            s2 = _times(_times(v2, f2[0], DUAL), m, DUAL)
            v = _read3(vectors, dvectors, j[:, None] * 3 * C + c[None, :], C, DUAL)
            x += tl.sum(_chosen(_times(s2, v[0], DUAL), DUAL), 0)
            y += tl.sum(_chosen(_times(s2, v[1], DUAL), DUAL), 0)
            z += tl.sum(_chosen(_times(s2, v[2], DUAL), DUAL), 0)
    tl.store(scalars_out + i * C + c, scalars)
    _store3(vectors_out + i * 3 * C + c, x, y, z, C, c >= 0)


@triton.jit
def _received(query, there, filters, m, u, sent, scalars_bar, vectors_bar, VECTORS: tl.constexpr, DUAL: tl.constexpr):
    """Of the messages to this atom: gradients by its query, by the envelope, by the unit vectors and by the inputs of the filters."""
    _, key, v1, v2, v3 = there
    fk, f1, f2, f3 = filters
    activated, slope = _logit(query, key, fk[0], DUAL)
    attention_bar = _column(_sum(_times(scalars_bar, _times(v1, f1[0], DUAL), DUAL)))
    logit_bar = _times(_times(attention_bar, m, DUAL), slope, DUAL)
    query_bar = _times(logit_bar, _times(key, fk[0], DUAL), DUAL)
    bar_k = _times(_times(logit_bar, _times(query, key, DUAL), DUAL), fk[1], DUAL)
    bar_1 = _times(_times(_times(activated, m, DUAL), _times(scalars_bar, v1, DUAL), DUAL), f1[1], DUAL)
    towards, s3 = _dot3(u, vectors_bar, DUAL), _times(v3, f3[0], DUAL)
    bar_3 = _times(_times(m, _times(towards, v3, DUAL), DUAL), f3[1], DUAL)
    damped = _times(s3, m, DUAL)
    across_x = _column(_sum(_times(damped, vectors_bar[0], DUAL)))
    across_y = _column(_sum(_times(damped, vectors_bar[1], DUAL)))
    across_z = _column(_sum(_times(damped, vectors_bar[2], DUAL)))
    m_bar, bar_2 = _times(towards, s3, DUAL), bar_3
    if VECTORS:
        carried = _dot3(sent, vectors_bar, DUAL)
        bar_2 = _times(_times(m, _times(carried, v2, DUAL), DUAL), f2[1], DUAL)
        m_bar = _plus(m_bar, _times(carried, _times(v2, f2[0], DUAL), DUAL))
    m_bar = _plus(_column(_sum(m_bar)), _times(attention_bar, activated, DUAL))
    return query_bar, m_bar, (across_x, across_y, across_z), (bar_k, bar_1, bar_2, bar_3)


@triton.jit
def _sent(here, query, filters, m, u, own, scalars_bar, vectors_bar, VECTORS: tl.constexpr, DUAL: tl.constexpr):
    """Of the messages from this atom to neighbours (whose query and gradients are given; it lies along -u from them):
    gradients by its key and values, and what the neighbours' gradients weigh its vectors with."""
    _, key, v1, v2, _ = here
    fk, f1, f2, f3 = filters
    activated, slope = _logit(query, key, fk[0], DUAL)
    attention_bar = _column(_sum(_times(scalars_bar, _times(v1, f1[0], DUAL), DUAL)))
    key_bar = _times(_times(_times(attention_bar, m, DUAL), slope, DUAL), _times(query, fk[0], DUAL), DUAL)
    v1_bar = _times(_times(activated, m, DUAL), _times(scalars_bar, f1[0], DUAL), DUAL)
    v3_bar = _times(_times(m, _dot3(u, vectors_bar, DUAL), DUAL), f3[0], DUAL)
    v2_bar, weight = v3_bar, v3_bar
    if VECTORS:
        v2_bar = _times(_times(m, _dot3(own, vectors_bar, DUAL), DUAL), f2[0], DUAL)
        weight = _times(_times(m, v2, DUAL), f2[0], DUAL)
    return key_bar, v1_bar, v2_bar, v3_bar, weight


@triton.jit
def _displacement_bar(r, u, r_bar, across, DUAL: tl.constexpr):
    """Gradient by the displacement r u from those by r and by u: r_bar u + (across - (across·u) u) / r."""
    inverse = (1 / r[0], -r[1] / (r[0] * r[0]))
    radial = _times(_dot3(across, u, DUAL), inverse, DUAL)
    along = (r_bar[0] - radial[0], r_bar[1] - radial[1])
    x = _plus(_times(along, u[0], DUAL), _times(across[0], inverse, DUAL))
    y = _plus(_times(along, u[1], DUAL), _times(across[1], inverse, DUAL))
    z = _plus(_times(along, u[2], DUAL), _times(across[2], inverse, DUAL))
    return _chosen(x, DUAL), _chosen(y, DUAL), _chosen(z, DUAL)


@triton.jit
def _keep(bars, dbars, at, C, inside, bar, VECTORS: tl.constexpr, DUAL: tl.constexpr):
    """Stores the gradients by the four filters' inputs."""
    tl.store(bars + at, bar[0][0], mask=inside)
    tl.store(bars + at + C, bar[1][0], mask=inside)
    tl.store(bars + at + 3 * C, bar[3][0], mask=inside)
    if VECTORS:
        tl.store(bars + at + 2 * C, bar[2][0], mask=inside)
    if DUAL:
        tl.store(dbars + at, bar[0][1], mask=inside)
        tl.store(dbars + at + C, bar[1][1], mask=inside)
        tl.store(dbars + at + 3 * C, bar[3][1], mask=inside)
        if VECTORS:
            tl.store(dbars + at + 2 * C, bar[2][1], mask=inside)


@triton.jit(do_not_specialize=["K"])  # which changes with every batch
def _reverse(
    node, dnode, vectors, dvectors, displacements, ddisplacements, senders, degrees, weight, bias, means, betas, scalars_bar, vectors_bar,
    node_out, vectors_out, displacements_out, filters_out, dfilters_out, K, C, cutoff, alpha,
    R: tl.constexpr, D: tl.constexpr, B: tl.constexpr, VECTORS: tl.constexpr, DUAL: tl.constexpr, PARAMETERS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of ⟨scalars_bar, scalars⟩ + ⟨vectors_bar, vectors⟩ by node, vectors and displacements (each head's part of the
    last); with DUAL their derivatives. PARAMETERS: by the inputs of the filters, too; with DUAL those and their derivatives."""
    i, h, H = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    c = h * D + tl.arange(0, D)
    here = _node(node, dnode, i * 5 * C + c[None, :], C, DUAL)
    own = _read3(vectors, dvectors, i * 3 * C + c[None, :], C, DUAL) if VECTORS else here
    gs, gv = _given(scalars_bar + i * C + c[None, :]), _given3(vectors_bar + i * 3 * C + c[None, :], C)
    q_out, k_out, v1_out = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    v2_out, v3_out = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    x_out, y_out, z_out = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    for start in range(0, tl.load(degrees + i), B):
        k = start + tl.arange(0, B)
        place, inside = i * K + k, k < K
        j, r, u = _pair(displacements, ddisplacements, senders, place, inside, cutoff, DUAL)
        m, m_slope, basis = _radial(r, means, betas, cutoff, alpha, R)
        filters = _filters(basis, r[1], weight, bias, c, C, R, VECTORS, DUAL, PRECISION)
        there, at = _node(node, dnode, j[:, None] * 5 * C + c[None, :], C, DUAL), j[:, None] * 3 * C + c[None, :]
        carried = _read3(vectors, dvectors, at, C, DUAL) if VECTORS else own
        q_bar, m_bar, across, bar = _received(here[0], there, filters, m, u, carried, gs, gv, VECTORS, DUAL)
        q_out += tl.sum(_chosen(q_bar, DUAL), 0)
        r_bar = _times(m_bar, m_slope, DUAL)
        r_bar = _plus(r_bar, _slope(bar[0], basis, r[1], weight, c, R, DUAL, PRECISION))
        r_bar = _plus(r_bar, _slope(bar[1], basis, r[1], weight, C + c, R, DUAL, PRECISION))
        r_bar = _plus(r_bar, _slope(bar[3], basis, r[1], weight, 3 * C + c, R, DUAL, PRECISION))
        if VECTORS:
            r_bar = _plus(r_bar, _slope(bar[2], basis, r[1], weight, 2 * C + c, R, DUAL, PRECISION))
        x, y, z = _displacement_bar(r, u, r_bar, across, DUAL)
        _store3(displacements_out + (place[:, None] * H + h) * 3, x, y, z, 1, inside[:, None])
        if PARAMETERS:
            # 2^31 floats are reached by 4,800 aspirins of the full-size model.
            _keep(filters_out, dfilters_out, place[:, None].to(tl.int64) * 4 * C + c[None, :], C, inside[:, None], bar, VECTORS, DUAL)
        ngs, ngv = _given(scalars_bar + j[:, None] * C + c[None, :]), _given3(vectors_bar + at, C)
        key_bar, v1_bar, v2_bar, v3_bar, weighed = _sent(here, there[0], filters, m, u, own, ngs, ngv, VECTORS, DUAL)
        k_out += tl.sum(_chosen(key_bar, DUAL), 0)
        v1_out += tl.sum(_chosen(v1_bar, DUAL), 0)
        v3_out -= tl.sum(_chosen(v3_bar, DUAL), 0)
        if VECTORS:
            v2_out += tl.sum(_chosen(v2_bar, DUAL), 0)
            x_out += tl.sum(_chosen(_times(weighed, ngv[0], DUAL), DUAL), 0)
            y_out += tl.sum(_chosen(_times(weighed, ngv[1], DUAL), DUAL), 0)
            z_out += tl.sum(_chosen(_times(weighed, ngv[2], DUAL), DUAL), 0)
    tl.store(node_out + i * 5 * C + c, q_out)
    tl.store(node_out + i * 5 * C + C + c, k_out)
    _store3(node_out + i * 5 * C + 2 * C + c, v1_out, v2_out, v3_out, C, c >= 0)
    if VECTORS:
        _store3(vectors_out + i * 3 * C + c, x_out, y_out, z_out, C, c >= 0)
