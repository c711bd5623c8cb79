"""Every CTR tower's published equations, one row at a time, in plain loops over float64.

`TOWERS[name](e, p)` gives h_c of a row with embeddings e [F, D] under the parameters p of its interaction model, and
`READOUTS[name](h, r)` the representation's share of the logit under the parameters r of its readout.
"""

import itertools
import math

import numpy as np


def dense(p, x):
    """Wᵀx + b, b where there is one."""
    kernel = np.asarray(p["kernel"], np.float64)
    bias = np.asarray(p["bias"], np.float64) if "bias" in p else np.zeros(kernel.shape[1])
    return np.array([sum(x[n] * kernel[n, m] for n in range(len(x))) + bias[m] for m in range(kernel.shape[1])])


def relu(x):
    return np.array([max(0.0, v) for v in x])


def sigmoid(x):
    return np.array([1 / (1 + math.exp(-v)) for v in x])


def softmax(x):
    powers = [math.exp(v) for v in x]
    return np.array(powers) / sum(powers)


def layer_norm(p, x):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scale, bias = (np.asarray(p[name], np.float64) for name in ("scale", "bias"))
    return np.array([(v - mean) / math.sqrt(variance + 1e-5) for v in x]) * scale + bias


def mlp(p, x):
    for layer in range(len(p)):
        x = relu(dense(p[f"dense_{layer}"], x))
    return x


def pairs(e):
    return list(itertools.combinations(range(len(e)), 2))


def join(*parts):
    return np.concatenate([np.ravel(part) for part in parts])


def lr(e, p):
    return e[:, 0]


def fm(e, p):
    return sum(e[i] * e[j] for i, j in pairs(e))


def fwfm(e, p):
    return np.array([sum(e[i] * e[j]) for i, j in pairs(e)])


def wide_deep(e, p):
    return mlp(p["deep"], join(e))


def deepfm(e, p):
    return join(sum(fwfm(e, p)), mlp(p["deep"], join(e)))


def xdeepfm(e, p):
    maps, pooled = e, []
    for layer in range(2):
        W = np.asarray(p[f"cin_{layer}"], np.float64)
        new = np.zeros((W.shape[2], e.shape[1]))
        for h in range(W.shape[2]):
            for i in range(len(maps)):
                for j in range(len(e)):
                    new[h] += W[i, j, h] * (maps[i] * e[j])
        maps = new
        pooled.append(maps.sum(axis=1))
    return join(*pooled, mlp(p["deep"], join(e)))


def dcn(e, p):
    x0 = x = join(e)
    for layer in range(3):
        w = np.asarray(p[f"cross_{layer}"]["kernel"], np.float64)[:, 0]
        x = x0 * sum(x * w) + np.asarray(p[f"bias_{layer}"], np.float64) + x
    return join(x, mlp(p["deep"], x0))


def dcnv2(e, p):
    x0 = x = join(e)
    for layer in range(3):
        x = x0 * dense(p[f"cross_{layer}"], x) + x
    return join(x, mlp(p["deep"], x0))


def dcnv2_stacked(e, p):
    x0 = x = join(e)
    for layer in range(3):
        x = x0 * dense(p[f"cross_{layer}"], x) + x
    return mlp(p["deep"], x)


def dcn_mix(e, p):
    """x_{l+1} = Σ_e G_e(x_l) E_e(x_l) + x_l,  E_e(x) = x_0 ⊙ (U_e · tanh(C_e · tanh(V_eᵀ x)) + b), G softmax."""
    x0 = x = join(e)
    for layer in range(2):
        cross = p[f"cross_{layer}"]
        V, C, U, b = (np.asarray(cross[name], np.float64) for name in ("V", "C", "U", "bias"))
        gates = softmax(dense(cross["gate"], x))
        new = x.copy()
        for expert in range(len(V)):
            inner = np.tanh(V[expert].T @ x)
            inner = np.tanh(C[expert].T @ inner)
            new += gates[expert] * x0 * (U[expert].T @ inner + b)
        x = new
    return join(x, mlp(p["deep"], x0))


def gdcn(e, p):
    c0 = c = join(e)
    for layer in range(3):
        c = c0 * dense(p[f"cross_{layer}"], c) * sigmoid(dense(p[f"gate_{layer}"], c)) + c
    return join(c, mlp(p["deep"], c0))


def gdcn_stacked(e, p):
    c0 = c = join(e)
    for layer in range(3):
        c = c0 * dense(p[f"cross_{layer}"], c) * sigmoid(dense(p[f"gate_{layer}"], c)) + c
    return mlp(p["deep"], c)


def autoint(e, p):
    for layer in range(3):
        q = p[f"layer_{layer}"]
        Q, K, V = (np.asarray(q[name]["kernel"], np.float64) for name in "QKV")  # [N, heads, width]
        new = []
        for m in range(len(e)):
            heads = []
            for h in range(Q.shape[1]):
                alpha = softmax([sum((e[m] @ Q[:, h]) * (e[k] @ K[:, h])) for k in range(len(e))])
                heads.append(sum(alpha[k] * (e[k] @ V[:, h]) for k in range(len(e))))
            new.append(relu(join(*heads) + dense(q["residual"], e[m])))
        e = np.array(new)
    return join(e)


def autoint_plus(e, p):
    return join(autoint(e, p["attention"]), mlp(p["deep"], join(e)))


def ipnn(e, p):
    return mlp(p["deep"], join(e, fwfm(e, p)))


def opnn(e, p):
    width = e.shape[1]
    outer = np.zeros((width, width))
    for i in range(len(e)):
        for j in range(len(e)):
            outer += np.outer(e[i], e[j])
    return mlp(p["deep"], join(e, outer))


def afm(e, p):
    products = [e[i] * e[j] for i, j in pairs(e)]
    weights = softmax([dense(p["score"], relu(dense(p["attention"], product)))[0] for product in products])
    return sum(w * product for w, product in zip(weights, products, strict=True))


def afn(e, p):
    logs = np.array([math.log(max(abs(v), 1e-7)) for v in join(e)])
    logs = layer_norm(p["log_norm"], logs).reshape(e.shape)
    w = np.asarray(p["exponents"], np.float64)
    neurons = [np.exp(sum(w[i, j] * logs[i] for i in range(len(e)))) for j in range(w.shape[1])]
    return mlp(p["deep"], layer_norm(p["exp_norm"], join(*neurons)))


def fibinet(e, p):
    z = [sum(v) / len(v) for v in e]
    a = relu(dense(p["excite"], relu(dense(p["squeeze"], z))))
    weighed = np.array([a[f] * e[f] for f in range(len(e))])
    W, W_weighed = (np.asarray(p[name]["W"], np.float64) for name in ("products", "weighed_products"))

    def matrix(all_of_them, number, i):
        fields = len(e)
        return all_of_them[{1: 0, fields: i, len(pairs(e)): number}[len(all_of_them)]]

    products = [(e[i] @ matrix(W, n, i)) * e[j] for n, (i, j) in enumerate(pairs(e))]
    products += [(weighed[i] @ matrix(W_weighed, n, i)) * weighed[j] for n, (i, j) in enumerate(pairs(e))]
    return mlp(p["deep"], join(*products))


def finalmlp(e, p):
    streams = []
    for s in (1, 2):
        context = np.asarray(p[f"context_{s}"], np.float64)[0]
        gate = 2 * sigmoid(dense(p[f"gate_{s}"], relu(dense(p[f"gate_{s}_hidden"], context))))
        streams.append(mlp(p[f"stream_{s}"], gate * join(e)))
    return join(*streams)


def mask_block(p, v, x):
    mask = dense(p["mask"], relu(dense(p["mask_hidden"], v)))
    return relu(layer_norm(p["norm"], dense(p["dense"], mask * x)))


def masknet_serial(e, p):
    x = join(*(layer_norm(p["norm"], v) for v in e))
    for block in range(len(p) - 1):
        x = mask_block(p[f"block_{block}"], join(e), x)
    return x


def masknet_parallel(e, p):
    normed = join(*(layer_norm(p["norm"], v) for v in e))
    blocks = [mask_block(p[f"block_{block}"], join(e), normed) for block in range(3)]
    return mlp(p["deep"], join(*blocks))


def dlrm(e, p):
    return mlp(p["top"], fwfm(e, p))


def dlrm_numbers(e, numbers, p):
    z = mlp(p["bottom"], numbers)
    return mlp(p["top"], join(z, fwfm([z, *e], p)))


def linear(h, r):
    return dense(r["dense"], h)[0]


def total(h, r):
    return sum(h) + float(r["bias"])


def first_plus_linear(h, r):
    return h[0] + linear(h[1:], r["deep"])


def bilinear_fusion(h, r):
    W = np.asarray(r["W"], np.float64)
    first, second = (half.reshape(len(W), -1) for half in np.split(h, 2))
    return linear(h, r["linear"]) + sum(first[k] @ W[k] @ second[k] for k in range(len(W)))


# fmt: off
_ALL = (
    lr, fm, fwfm, wide_deep, deepfm, xdeepfm, dcn, dcnv2, dcn_mix, gdcn,
    autoint, autoint_plus, ipnn, opnn, afm, afn, fibinet, finalmlp,
    masknet_serial, masknet_parallel, dlrm,
)
# fmt: on
TOWERS = {tower.__name__: tower for tower in _ALL}
READOUTS = {"lr": total, "fm": total, "deepfm": first_plus_linear, "finalmlp": bilinear_fusion}
FIRST_ORDER = {"fm", "fwfm", "wide_deep", "deepfm", "xdeepfm", "dcn_mix", "afm", "fibinet"}
