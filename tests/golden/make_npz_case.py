#!/usr/bin/env python3
"""Writes arrays.npz (stored), deflated.npz, plain.npy and refused.npz with NumPy, for npz_test.cc."""
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "npz"


def main():
    FOLDER.mkdir(exist_ok=True)
    images = (np.arange(3 * 4 * 5 * 3) * 7 % 256).astype(np.uint8).reshape(3, 4, 5, 3)
    arrays = {"arr_0": images, "mu": np.linspace(-1, 1, 6), "half": np.array([0.5, -2], np.float16),
              "single": np.array([[1.5], [2.5]], np.float32), "i4": np.arange(-2, 3, dtype=np.int32),
              "i8": np.array(2**40), "none": np.zeros((0, 3), np.float32)}
    np.savez(FOLDER / "arrays.npz", **arrays)
    np.savez_compressed(FOLDER / "deflated.npz", **arrays)
    with open(FOLDER / "plain.npy", "wb") as file:
        np.lib.format.write_array(file, images, version=(2, 0))
    np.savez(FOLDER / "refused.npz", fortran=np.asfortranarray(np.ones((2, 3))),
             big=np.ones(2, ">f4"), complex=np.ones(2, complex),
             structured=np.zeros(2, [("a", "f4"), ("b", "i4")]))


if __name__ == "__main__":
    main()
