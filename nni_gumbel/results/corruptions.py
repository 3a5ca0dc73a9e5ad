"""Corruptions of images by torchvision: blur, contrast, brightness, rotation, shift, JPEG, each with five severities.

Images are ``(B, C, H, W)`` with 1 or 3 channels and values between 0 and 1; so are the results.

Source: Hendrycks, Dietterich, Benchmarking neural network robustness (arXiv 1903.12261).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms import functional as F


def _blurred(images: Tensor, strength: float) -> Tensor:
    side = min(images.shape[2:])
    sigma = strength * side
    # Beyond its border torchvision mirrors the image, at most once.
    half = min(math.ceil(3 * sigma), (side - 1) // 2)
    return F.gaussian_blur(images, [2 * half + 1] * 2, [sigma] * 2)


def _shifted(images: Tensor, strength: float) -> Tensor:
    height, width = images.shape[2:]
    return F.affine(images, 0.0, [round(strength * width), round(strength * height)], 1.0, [0.0, 0.0])


def _as_jpeg(images: Tensor, strength: float) -> Tensor:
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return torch.stack([decode_jpeg(encode_jpeg(each, round(100 - strength))) for each in pixels]) / 255


# Name, unit of the strengths, five severities, and what is done.
CORRUPTIONS: tuple[tuple[str, str, tuple[float, ...], Callable[[Tensor, float], Tensor]], ...] = (
    ("blur", "standard deviation, in sides of the image", (0.01, 0.02, 0.03, 0.05, 0.08), _blurred),
    ("less contrast", "share of the contrast taken", (0.2, 0.4, 0.6, 0.8, 0.9),
     lambda images, strength: F.adjust_contrast(images, 1 - strength)),
    ("brighter", "share of the brightness added", (0.25, 0.5, 1.0, 1.5, 2.0),
     lambda images, strength: F.adjust_brightness(images, 1 + strength)),
    ("rotation", "degrees", (5.0, 10.0, 20.0, 30.0, 45.0),
     lambda images, strength: F.rotate(images, strength, F.InterpolationMode.BILINEAR)),
    ("shift", "sides of the image, along both", (0.04, 0.08, 0.12, 0.16, 0.2), _shifted),
    ("JPEG", "100 - quality", (50.0, 70.0, 80.0, 90.0, 95.0), _as_jpeg),
)  # fmt: skip
