"""The search from Python as trials of NNI's manager, live in its portal: about two minutes on 2 CPU cores.

In the folder of the clone, where the trials find `search_spaces`:

python examples/python_portal.py [--epochs 6] [--port 8080]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nni
from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment, NasExperimentConfig

from nni_gumbel import GumbelSearch, private_portal
from nni_gumbel.data import build_data

sys.path.insert(0, str(Path(__file__).parent.parent))
from search_spaces.mnist import MnistSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()

    # Traced: a trial gets this call, and not its images.
    data = nni.trace(build_data)("mnist5k", data_dir="data", batch_size=64, seed=0)
    evaluator = Classification(
        num_classes=data.num_classes,
        learning_rate=2e-3,
        datamodule=data,
        max_epochs=arguments.epochs,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        export_onnx=False,
    )
    config = NasExperimentConfig("ts", "simplified", "local")
    config.experiment_name = "GumbelSearch from Python"
    config.trial_concurrency = 1
    config.max_trial_number = 2  # the search, and the training of the best network that it finds
    experiment = NasExperiment(MnistSpace(), evaluator, GumbelSearch(cost_weight=1.0), config)
    private_portal()
    experiment.run(arguments.port)

    (network,) = experiment.export_top_models()
    if network.metric is None:
        sys.exit("the network found has not been trained; the log above says why")
    print(f"trained from scratch: validation accuracy {network.metric:.4f}")
    for label, value in network.sample.items():
        print(f"  {label:20} {value}")
    if sys.stdin.isatty():
        input(f"the portal is at http://127.0.0.1:{arguments.port}; Enter ends it")
    experiment.stop()


if __name__ == "__main__":
    main()
