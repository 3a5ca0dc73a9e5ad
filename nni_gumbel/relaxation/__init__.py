"""The maths of the relaxation: pure functions on tensors and on step counts."""
