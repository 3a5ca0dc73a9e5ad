"""The supernet: one distribution over networks, and the NNI modules that compute its mixture."""
