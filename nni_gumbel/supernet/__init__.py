"""The supernet: one distribution over networks, and the NNI modules that compute its mixture.

In reading order: ``distribution`` holds the logits and draws a ``joint_sample``, which every module with a label reads.
``layer``, ``inputs``, ``depth``, ``cell`` and ``arguments`` mix NNI's primitives, and all end in a ``mixture``. What is
one operation is computed as one: ``kernels`` of ``candidates`` of a choice lie on one canvas, ``sizes`` of one module
are parts of the largest, and ``elementwise`` candidates keep one tensor. ``expressions`` tabulates values that depend
on choices, ``variants`` the modules that they lead to, and ``slicing`` says which part of the weights each of them has.
``mutation`` turns a space into a supernet; ``refusals`` tells what cannot be one, and ``hub`` has what NNI's own spaces
need besides. ``structure`` leads back to a network.
"""

# First of all of NNI's one-shot part: whoever imports `nni.nas.oneshot` before `nni.nas.strategy` finds
# that the latter's DARTS has silently become a class that fails (NNI's two packages import each other).
import nni.nas.strategy  # noqa: F401
