"""The supernet: one distribution over networks, and the NNI modules that compute its mixture."""

# First of all of NNI's one-shot part: whoever imports `nni.nas.oneshot` before `nni.nas.strategy` finds
# that the latter's DARTS has silently become a class that fails (NNI's two packages import each other).
import nni.nas.strategy  # noqa: F401
