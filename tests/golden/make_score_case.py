#!/usr/bin/env python3
"""Writes score_v37_c5.json: Eq. 1 in fp64 with the standard library alone, for dd2-parity.

Rows cover t from 0.03 to 1, impossible codes (null) and unnormalised log-probabilities. Inputs are
rounded to fp32 so that both precisions solve the same problem.
"""
import json
import math
import pathlib
import random
import struct

ROWS, CODES, CHANNELS = 12, 37, 5


def fp32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def solve(codebook, logp, t, x, u):
    a = [None if p is None else p - sum((xk - (1 - t) * ck) ** 2 for xk, ck in zip(x, c)) / (2 * t * t)
         for p, c in zip(logp, codebook)]
    top = max(v for v in a if v is not None)
    r = [0.0 if v is None else math.exp(v - top) for v in a]
    total = math.fsum(r)
    r = [v / total for v in r]
    mu = [math.fsum(rj * c[k] for rj, c in zip(r, codebook)) for k in range(CHANNELS)]
    # J^T u with the covariance about mu, which does not cancel.
    along = [math.fsum((c[k] - mu[k]) * u[k] for k in range(CHANNELS)) for c in codebook]
    jtu = [(1 - t) / t ** 2 * math.fsum(rj * aj * (c[k] - mu[k]) for rj, aj, c in zip(r, along, codebook))
           for k in range(CHANNELS)]
    velocity = [(xk - mk) / t for xk, mk in zip(x, mu)]
    score = [-(xk - (1 - t) * mk) / t ** 2 for xk, mk in zip(x, mu)]
    return mu, velocity, score, jtu


def main():
    rng = random.Random(20)
    normal = lambda: fp32(rng.gauss(0, 1))
    codebook = [[normal() for _ in range(CHANNELS)] for _ in range(CODES)]
    case = {"codebook": codebook, "logp": [], "t": [], "x": [], "u": [],
            "mu": [], "velocity": [], "score": [], "jtu": []}
    for i in range(ROWS):
        t = fp32([0.03, 0.1, 0.25, 0.5, 0.8, 1.0][i % 6])
        shift = 10.0 * (i % 3)
        logp = [None if i % 2 and j % 3 == 0 else fp32(2 * normal() + shift) for j in range(CODES)]
        code = codebook[rng.randrange(CODES)]
        x = [fp32((1 - t) * c + t * normal()) for c in code]
        u = [normal() for _ in range(CHANNELS)]
        for name, value in zip(("mu", "velocity", "score", "jtu"), solve(codebook, logp, t, x, u)):
            case[name].append(value)
        for name, value in (("logp", logp), ("t", t), ("x", x), ("u", u)):
            case[name].append(value)
    path = pathlib.Path(__file__).with_name("score_v37_c5.json")
    path.write_text(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
