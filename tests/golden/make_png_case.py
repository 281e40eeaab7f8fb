#!/usr/bin/env python3
"""Writes the pictures of png/ with Pillow, for png_test.cc: 2 x 1 pixels in several colour types."""
import pathlib

from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "png"


def main():
    FOLDER.mkdir(exist_ok=True)
    colour = Image.new("RGB", (2, 1))
    colour.putdata([(10, 20, 30), (255, 0, 128)])
    colour.save(FOLDER / "rgb.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 255, 0, 128])
    palette.putdata([0, 1])
    palette.save(FOLDER / "palette.png")
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 200])
    grey.save(FOLDER / "grey.png")
    colour.convert("RGBA").save(FOLDER / "transparent.png")


if __name__ == "__main__":
    main()
