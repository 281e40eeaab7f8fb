"""Floating-point operations of one step, by formula: matrix products only, an add and a multiply each.

Causal attention counts the pairs i >= j. A backward pass costs as much as the forward one for each
gradient that somebody needs: of the weights, and of the inputs unless these are data. What is
recomputed, padded or element-wise does not count, so both sides of a benchmark have the same number.
"""


def backbone(shape, gradient):
    """One sequence through the backbone; with `gradient` also backward, to all its weights."""
    d, n = shape["d"], shape["tokens"]
    first = 2 * (n - 1) * shape["channels"] * d           # its input is data
    linear = 2 * (n - 1) * d * d + shape["layers"] * n * 2 * 12 * d * d
    attention = shape["layers"] * 2 * 2 * d * n * (n + 1) // 2
    if not gradient:
        return first + linear + attention
    return 2 * first + 3 * linear + 3 * attention


def head(spec, shape, rows, conditions, times, gradient):
    """The head on `rows` (x, t), with `conditions` feature vectors and `times` distinct t.

    gradient: "none", "weights" (and features), or "input" (of x alone: guidance in the CSD loss).
    """
    w, channels = spec["w"], shape["channels"]
    time_in = 2 * times * spec["time_features"] * w
    time_out = 2 * times * w * w
    condition = 2 * conditions * shape["d"] * w
    # Generation has one t: its modulation has as many rows as there are features.
    modulation = 2 * rows * w * (3 * w * spec["depth"] + 2 * w)
    first = 2 * rows * channels * w
    stream = 2 * rows * (2 * w * w * spec["depth"] + w * channels)
    forward = time_in + time_out + condition + modulation + first + stream
    if gradient == "none":
        return forward
    if gradient == "input":
        return forward + first + stream
    return forward + time_in + first + 2 * (time_out + condition + modulation + stream)


def generate(settings, shape, batch, gradient):
    rows = batch * shape["tokens"]
    return (batch * backbone(shape, gradient) +
            head(settings["head"], shape, rows, rows, 1, "weights" if gradient else "none"))


def teacher_logits(settings, shape, batch):
    passes = 1 if settings["cfg_scale"] == 1 else 2
    return (passes * batch * backbone(shape, False) +
            2 * batch * shape["tokens"] * shape["d"] * shape["codes"])


def posterior(shape, rows, products):
    """products: 2 for the mean (x C^T, r C), 4 with its vector-Jacobian product."""
    return products * 2 * rows * shape["channels"] * shape["codes"]


def velocity_loss(settings, shape, batch):
    """Forward and backward of GTS or FCS: one pass of the backbone, m draws of the head."""
    conditions = batch * shape["tokens"]
    rows = conditions * settings["draws"]
    return (batch * backbone(shape, True) +
            head(settings["head"], shape, rows, conditions, rows, "weights"))


def csd_cycle(settings, shape):
    batch = settings["batch"]
    guidance = generate(settings, shape, batch, False) + velocity_loss(settings, shape, batch)
    conditions = batch * shape["tokens"]
    rows = conditions * settings["generator_draws"]
    generator = (generate(settings, shape, batch, True) + teacher_logits(settings, shape, batch) +
                 batch * backbone(shape, False) +
                 head(settings["head"], shape, rows, conditions, rows, "input") +
                 posterior(shape, rows, 4))
    return settings["guidance_updates"] * guidance + generator


def gts_step(settings, shape, teacher_asked):
    batch = settings["batch"]
    rows = batch * shape["tokens"] * settings["draws"]
    asked = teacher_logits(settings, shape, batch) if teacher_asked else 0
    return velocity_loss(settings, shape, batch) + posterior(shape, rows, 2) + asked
