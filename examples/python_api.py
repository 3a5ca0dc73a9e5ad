"""The search as a drop-in NNI strategy, without the experiment manager: about a minute on a CPU.

python examples/python_api.py [--epochs 6]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment

from nni_gumbel import GumbelSearch
from nni_gumbel.data import build_data

sys.path.insert(0, str(Path(__file__).parent.parent))
from search_spaces.mnist import MnistSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()

    data = build_data("mnist5k", data_dir="data", batch_size=64, seed=0)
    evaluator = Classification(
        num_classes=data.num_classes,
        learning_rate=2e-3,
        datamodule=data,
        max_epochs=arguments.epochs,
        enable_checkpointing=False,
        logger=False,
    )
    experiment = NasExperiment(MnistSpace(), evaluator, GumbelSearch(cost_weight=1.0))
    experiment.run()

    architecture = experiment.export_top_models(formatter="dict")[0]
    print("the most probable network:")
    for label, value in architecture.items():
        print(f"  {label:20} {value}")


if __name__ == "__main__":
    main()
