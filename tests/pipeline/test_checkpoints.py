"""A run that was cut off goes on where it was, as if it had never been."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import pytorch_lightning as pl
import torch
from small_searches import Minimal, Nested, evaluator, loader

from nni_gumbel.pipeline.checkpoints import latest_checkpoint, resumable
from nni_gumbel.results.space import network_of
from nni_gumbel.search.strategy import GumbelSearch

EPOCHS = 4


class Cut(pl.Callback):
    """Ends a run at the begin of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            raise ConnectionAbortedError


class Signalled(pl.Callback):
    """Sends its own process a signal within a batch."""

    def __init__(self, how, epoch, batch):
        self.how, self.at = how, (epoch, batch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            signal.raise_signal(self.how)


def adam(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


def training(seed):
    pl.seed_everything(seed, verbose=False)
    generator = torch.Generator().manual_seed(3)
    given = evaluator(Minimal(adam), loader(generator=generator), loader(seed=1), max_epochs=EPOCHS)
    return given, network_of(Nested(), {"outer": 0, "inner": 1})  # with dropout


def searching(seed, **settings):
    pl.seed_everything(seed, verbose=False)
    given = evaluator(Minimal(adam), loader(count=240), loader(count=16, seed=1), max_epochs=EPOCHS)
    strategy = GumbelSearch(**settings or {"stages": 1, "finalists": 2})
    supernet = strategy.mutate_model(Nested())
    return strategy.mutate_evaluator(given), supernet


def descending(seed):
    """A search without stages, whose structure steps take three batches together."""
    return searching(seed, preset="gradual", batches_per_step=3)


def run(kind, folder, seed=0, cut=None, signalled=None):
    """The numbers at the end of a run; ``None`` of one that was cut off."""
    given, network = kind(seed)
    if cut is not None:
        given.trainer.callbacks.append(Cut(cut))
    if signalled is not None:
        given.trainer.callbacks.append(Signalled(*signalled))
    try:
        with resumable(given, folder):
            given.evaluate(network)
    except (ConnectionAbortedError, SystemExit):
        return None
    return {name: value.clone() for name, value in given.module.state_dict().items()}


@pytest.mark.parametrize("kind", [training, searching])
@pytest.mark.parametrize("cut", [1, 3])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, kind, cut):
    whole = run(kind, tmp_path / "whole")
    assert run(kind, tmp_path / "cut", cut=cut) is None
    # Another seed: every number that decides must come from the checkpoint.
    resumed = run(kind, tmp_path / "cut", seed=100)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("kind", [training, searching, descending])
@pytest.mark.parametrize(("how", "epoch"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_ends_a_run_behind_its_batch_and_nothing_is_repeated(tmp_path, kind, how, epoch):
    whole = run(kind, tmp_path / "whole")
    assert run(kind, tmp_path / "cut", signalled=(how, epoch, 1)) is None
    saved = torch.load(latest_checkpoint(tmp_path / "cut"), weights_only=True)
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert (saved["epoch"], progress["completed"]) == (epoch, 2)
    # Again in the same epoch, and in the next one.
    assert run(kind, tmp_path / "cut", seed=100, signalled=(how, epoch, 2)) is None
    assert run(kind, tmp_path / "cut", seed=200, signalled=(how, epoch + 1, 0)) is None
    resumed = run(kind, tmp_path / "cut", seed=300)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_that_a_signal_ends_in_a_validation_repeats_the_epoch(tmp_path):
    whole = run(training, tmp_path / "whole")
    # In the last batch: Lightning sees it in the validation.
    assert run(training, tmp_path / "cut", signalled=(signal.SIGTERM, 1, 3)) is None
    assert latest_checkpoint(tmp_path / "cut").name == "epoch=0.ckpt"
    resumed = run(training, tmp_path / "cut", seed=100)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_after_a_run_the_signals_are_what_they_were(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(training, tmp_path / "whole")
    run(training, tmp_path / "cut", signalled=(signal.SIGINT, 1, 1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_that_is_over_leaves_no_checkpoint(tmp_path):
    run(training, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_two_latest_checkpoints_are_kept(tmp_path):
    run(training, tmp_path, cut=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch=1.ckpt", "epoch=2.ckpt"]


def test_where_the_latest_is_damaged_the_one_before_is_taken_with_a_warning(tmp_path, caplog):
    whole = run(training, tmp_path / "whole")
    run(training, tmp_path / "cut", cut=3)
    latest = tmp_path / "cut" / "epoch=2.ckpt"
    latest.write_bytes(latest.read_bytes()[: latest.stat().st_size // 2])
    resumed = run(training, tmp_path / "cut", seed=100)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert f"{latest} cannot be read" in caplog.text and "goes on from epoch=1.ckpt" in caplog.text


def test_where_all_are_damaged_it_begins_anew(tmp_path):
    (tmp_path / "epoch=0.ckpt").write_bytes(b"no checkpoint")
    assert latest_checkpoint(tmp_path) is None
    assert run(training, tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_checkpoints_that_can_be_read(tmp_path, how):
    code = f"""
        import sys; sys.path[:0] = {sys.path!r}
        import os
        from pathlib import Path
        import pytorch_lightning as pl
        import torch
        import test_checkpoints

        torch.set_num_threads({torch.get_num_threads()})

        class Kills(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                if (trainer.current_epoch, batch_idx) == (2, 1):
                    os.kill(os.getpid(), {int(how)})

        given, network = test_checkpoints.training(0)
        given.trainer.callbacks.append(Kills())
        with test_checkpoints.resumable(given, Path({str(tmp_path / "cut")!r})):
            given.evaluate(network)
    """
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True)
    whole = run(training, tmp_path / "whole")
    for name in ("interrupted",) * (how == signal.SIGTERM) + ("epoch=1", "epoch=0"):
        assert latest_checkpoint(tmp_path / "cut").name == f"{name}.ckpt"
        shutil.copytree(tmp_path / "cut", tmp_path / "copy")
        resumed = run(training, tmp_path / "copy", seed=100)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
        (tmp_path / "cut" / f"{name}.ckpt").unlink()
