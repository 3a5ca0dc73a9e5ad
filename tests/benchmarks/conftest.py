"""Scripts of a folder import each other by name, as Python lets them when one of them is run."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
sys.path += [str(BENCHMARKS / "nasbench201"), str(BENCHMARKS)]
