"""Stages of an experiment, the tuner between them and NNI, and what one trial does."""
