"""Spaces of NNI's hub, shrunk to a size that a test can afford."""

from nni.nas.hub.pytorch import MobileNetV3Space


def mobilenet():
    return MobileNetV3Space(
        4,
        base_widths=(8, 8, 16, 16, 16, 16),
        width_multipliers=(1.0, 2.0),
        expand_ratios=(1.0, 2.0),
        squeeze_excite=("none", "optional", "force"),
        depth_range=(1, 2),
        stride=(2, 1, 2, 2, 1, 1),
        activation=("hswish", "relu", "relu", "hswish", "hswish", "swish"),
    )
