"""Lightning's own loggers, as `--logger` names them: the package that each needs, and where it writes.

They get whatever the evaluator logs, and of a search its structure and every probability. Each run has a place of its
own in the trial's output directory, under the name of its trial, and in the services those that their variables name
(``WANDB_API_KEY``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from requests.utils import get_netrc_auth

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.task import TENSORBOARD

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

FIELD, LOGGERS = "--logger", ("csv", "tensorboard", "wandb", "mlflow")
_EXTRAS = ("wandb", "mlflow")  # of setup.cfg, each named as its package


def check_loggers(names: Sequence[str]) -> None:
    """See that the packages of loggers are installed; imports nothing.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise UsageError(f"{FIELD}: {name} is not installed; pip install 'nni-gumbel[{name}]'")


def loggers_of(names: Sequence[str], output: Path) -> list[Logger]:
    """Make the loggers of a run.

    Args:
        names: of ``LOGGERS``.
        output: the output directory of the trial.

    Raises:
        UsageError: a package is not installed.
    """
    check_loggers(names)
    experiment, run = os.environ.get("NNI_EXP_ID", output.parent.name), output.name

    def csv() -> Logger:
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(str(output), "csv")

    def tensorboard() -> Logger:
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(str(output / TENSORBOARD), "lightning")  # beside ours, in the portal, too

    def wandb() -> Logger:
        from pytorch_lightning.loggers import WandbLogger

        # Without an account it would ask for one, and end the trial. `wandb login` writes into ~/.netrc.
        told = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        offline = (
            not told and get_netrc_auth(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")) is None
        )
        place = {"project": "nni-gumbel", "group": experiment, "name": run}
        return WandbLogger(save_dir=str(output), offline=offline, **place)

    def mlflow() -> Logger:
        from pytorch_lightning.loggers import MLFlowLogger

        service = os.environ.get("MLFLOW_TRACKING_URI")
        if service is None:  # later releases refuse to write files otherwise
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        return MLFlowLogger(f"nni-gumbel {experiment}", run, service, save_dir=str(output / "mlruns"))

    make: dict[str, Callable[[], Logger]] = dict(zip(LOGGERS, (csv, tensorboard, wandb, mlflow)))
    return [make[name]() for name in dict.fromkeys(names)]


def close(loggers: Sequence[Logger]) -> None:
    """End the runs of a process that has more of them to come."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":  # Lightning leaves its run open
            logger.experiment.finish()
