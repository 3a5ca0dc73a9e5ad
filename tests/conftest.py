"""Settings for all tests."""

import sys
from pathlib import Path

import torch

# Helpers of the tests are importable by their file name, the example spaces by their folder.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

# The tests' networks are tiny: more threads than one only wait for each other.
torch.set_num_threads(1)
