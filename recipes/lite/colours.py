"""The colours of a drawing, by rule: what is opaque in it, counted in a small copy of it."""

import colorsys
from collections import Counter

import numpy as np
from PIL import Image

SIDE = 24  # pixels of the small copy
LEAST_SHARE = 0.3  # of what is opaque
LEAST_PIXELS = 20


def colours(image: Image.Image) -> list[str]:
    """The one or two colours that make up a good part of an RGBA picture, the larger first; often none."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 127, :3]
    if len(opaque) < LEAST_PIXELS:
        return []
    counted = Counter(colour(*(int(part) for part in pixel)) for pixel in opaque)
    return [name for name, count in counted.most_common(2) if count / len(opaque) > LEAST_SHARE]


def colour(red: int, green: int, blue: int) -> str:
    """What people call it. Borders by eye, on the hue circle of HSV."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    degrees = hue * 360
    if value < 0.22:
        return "black"
    if saturation < 0.13:
        return "white" if value > 0.85 else "gray"
    if degrees < 14 or degrees >= 345:
        if saturation < 0.5 and value > 0.75:
            return "pink"
        return "brown" if value < 0.5 else "red"
    if degrees < 42:
        if value < 0.68:
            return "brown"
        return "orange" if saturation > 0.55 else "beige"
    if degrees < 70:
        return "yellow" if value > 0.6 else "olive"
    ends = ((165, "green"), (260, "blue"), (300, "purple"), (345, "pink"))
    return next(name for end, name in ends if degrees < end)
