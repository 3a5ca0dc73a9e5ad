"""The search: its settings, its two alternating steps, and the NNI strategy around them."""
