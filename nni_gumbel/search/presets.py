"""Known methods of the field as settings of this one, so that they can be compared with one word changed.

A preset sets what *defines* its method: how a sample is drawn and how its temperature runs, without the
entropy term that is ours. What any method needs - learning rates, epochs, the weight of the cost -
stays as it is, so that two presets differ in their method alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GRADIENT_ALONE = {
    "stages": 0, "finalists": 0, "entropy_weight_start": 0.0, "entropy_weight_end": 0.0, "capacity_exponent": 0.0,
}  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # What this project had before stages: explores by a negative weight of the entropy, then commits by a positive one.
    "gradual": {
        **_GRADIENT_ALONE, "temperature_start": 3.0, "temperature_end": 0.1, "entropy_weight_start": -1.0,
        "entropy_weight_end": 2.0,
    },
    # arXiv 1806.09055, equation 2: the softmax itself, no noise. Its temperature is 1.
    "darts": {
        "estimator": "probabilities", "temperature_start": 1.0, "temperature_end": 1.0,
        "temperature_schedule": "constant", **_GRADIENT_ALONE,
    },
    # arXiv 1812.09926: Gumbel-softmax. The paper gives no temperatures: these are those of NNI's GumbelDARTS.
    "snas": {
        "estimator": "soft", "temperature_start": 1.0, "temperature_end": 0.33,
        "temperature_schedule": "exponential", **_GRADIENT_ALONE,
    },
    # arXiv 1910.04465, equations 3 and 4; temperatures of the authors' code.
    "gdas": {
        "estimator": "straight-through-gumbel", "temperature_start": 10.0, "temperature_end": 0.1,
        "temperature_schedule": "linear", **_GRADIENT_ALONE,
    },
}  # fmt: skip
