#!/usr/bin/env python3
"""Writes adm_metrics.json: FID, Inception Score, precision and recall by public packages.

Needs scipy, pytorch-fid, torch-fidelity and prdc. With g(k, j) = sin(0.013 k^2 + 0.7 k + 1.3 j + 0.5)
in double, feature d of image i of a set is max(0, 0.35 g(64 i + d, j) + g(i, j + 1 + d mod 5) +
(shift when d < 16)), rounded to fp32; the reference has j = 0 and no shift, the samples j = 10 and
shift 0.4. The last weight is w[c][d] = g(64 c + d, 20).
"""
import json
import pathlib

import numpy as np
import prdc
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

WIDTH, REFERENCE, SAMPLES, CLASSES = 64, 500, 400, 20
FEW_REFERENCE, FEW_SAMPLES = 40, 30  # fewer than WIDTH: both covariances are singular


def g(k, j):
    k = k.astype(np.float64)
    return np.sin(0.013 * (k * k) + 0.7 * k + 1.3 * j + 0.5)


def features(count, j, shift):
    i, d = np.ogrid[:count, :WIDTH]
    value = 0.35 * g(WIDTH * i + d, j) + g(i + 0 * d, j + 1 + d % 5) + np.where(d < 16, shift, 0.0)
    return np.maximum(value, 0).astype(np.float32)


def frechet(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0),
                                            np.cov(b, rowvar=False)))


def frechet_of_few(a, b):
    """The trace of the root is the nuclear norm of the product of the centred features: exact
    where a root of the singular product is not."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    x, y = (v - v.mean(0) for v in (a, b))
    x, y = (v / np.sqrt(len(v) - 1) for v in (x, y))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (x * x).sum() + (y * y).sum() - 2 * cross)


def main():
    reference, samples = features(REFERENCE, 0, 0.0), features(SAMPLES, 10, 0.4)
    few = reference[:FEW_REFERENCE], samples[:FEW_SAMPLES]
    c, d = np.ogrid[:CLASSES, :WIDTH]
    weight = g(WIDTH * c + d, 20).astype(np.float32)
    logits = torch.from_numpy(samples) @ torch.from_numpy(weight).T
    score = isc_features_to_metric(logits, splits=10, shuffle=False)
    precision, recall = calculate_precision_recall_full(torch.from_numpy(samples), torch.from_numpy(reference))
    other = prdc.compute_prdc(reference.astype(np.float64), samples.astype(np.float64), nearest_k=3)
    assert abs(precision - other["precision"]) < 1e-6 and abs(recall - other["recall"]) < 1e-6, other
    case = {"fid": frechet(samples, reference), "few_fid": frechet_of_few(*few[::-1]),
            "few_fid_scipy": frechet(*few[::-1]), "score": score["inception_score_mean"],
            "score_std": score["inception_score_std"], "precision": precision, "recall": recall}
    print(case)
    pathlib.Path(__file__).with_name("adm_metrics.json").write_text(json.dumps(case) + "\n")


if __name__ == "__main__":
    main()
