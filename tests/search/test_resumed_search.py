"""A search that was stopped and resumed is the search that was never stopped, to the bit."""

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader
from small_searches import Minimal, evaluator, loader, numbers, search
from torch.utils.data import Dataset

from nni_gumbel.errors import UsageError
from nni_gumbel.search.state import random_state, restore_random_state, unchanged_randomness

EPOCHS = 3


class Noisy(Dataset):
    """Draws from every global generator: what an augmentation may do."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        noise = torch.randn(4) + random.random() + np.random.rand()
        x = noise.float() * 0.1 + index / 16
        return x, x.sum(0, keepdim=True)


def scheduled(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


def its_own_generator(seed):
    return torch.Generator().manual_seed(seed)


def data(kind):
    """A training and a shorter validation loader; the latter starts again within an epoch."""
    if kind == "noisy":
        return DataLoader(Noisy(), 8, shuffle=True), loader(count=16, seed=1)
    if kind == "own generator":
        return loader(generator=its_own_generator(3)), loader(
            count=16, seed=1, generator=its_own_generator(4)
        )
    return loader(), loader(count=16, seed=1)


def run(kind, callbacks=(), resume_from=None, seed=0, trainer=None, **settings):
    train, val = data(kind)
    options = {"max_epochs": EPOCHS, "enable_checkpointing": bool(callbacks), "callbacks": list(callbacks)}
    given = evaluator(Minimal(scheduled), train, val, **{**options, **(trainer or {})})
    if resume_from is not None:
        given.fit_kwargs["ckpt_path"] = str(resume_from)
    return search(given, seed=seed, **settings)


def saving(folder, **kwargs):
    return pl.callbacks.ModelCheckpoint(
        dirpath=folder, **{"filename": "{epoch}", "every_n_epochs": 1, "save_top_k": -1, **kwargs}
    )


def same(first, second):
    first, second = numbers(first), numbers(second)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("plain", {}),
        ("noisy", {"warmup_epochs": 1, "estimator": "straight-through-gumbel"}),
        ("plain", {"temperature_schedule": "cosine"}),
        ("own generator", {"preset": "gdas"}),
        ("plain", {"max_params": 30, "max_flops": 40, "kl_weight": 0.5, "prior": "cost", "cost": "flops"}),
    ],
)
def test_resumed_after_any_epoch_it_ends_with_the_same_logits_and_weights(tmp_path, kind, settings):
    whole = run(kind, [saving(tmp_path)], **settings)
    for epoch in range(EPOCHS - 1):
        # Another seed: every number that decides must come from the checkpoint.
        resumed = run(kind, resume_from=tmp_path / f"epoch={epoch}.ckpt", seed=100 + epoch, **settings)
        assert resumed.trainer.current_epoch == EPOCHS and same(whole, resumed)


@pytest.mark.parametrize(
    ("callback", "trainer"),
    [
        ({"save_on_train_epoch_end": False}, {}),
        ({}, {"max_steps": 5, "max_epochs": 50}),
        ({}, {"accumulate_grad_batches": 2, "num_sanity_val_steps": 1, "check_val_every_n_epoch": 2}),
    ],
)
def test_it_is_so_whatever_the_trainer_does_around_an_epochs_end(tmp_path, callback, trainer):
    whole = run("plain", [saving(tmp_path, **callback)], trainer=trainer)
    resumed = run("plain", resume_from=tmp_path / "epoch=1.ckpt", seed=100, trainer=trainer)
    assert same(whole, resumed)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_search_that_was_stopped_within_an_epoch_goes_on_too(tmp_path):
    saved = saving(tmp_path, filename="{step}", every_n_epochs=0, every_n_train_steps=3)
    whole = run("plain", [saved])
    resumed = run("plain", resume_from=tmp_path / "step=3.ckpt", seed=100)
    assert resumed.progress == whole.progress == 1 and not same(whole, resumed)


def test_the_same_seed_gives_the_same_numbers_twice_and_another_seed_others():
    first, second, other = run("noisy"), run("noisy"), run("noisy", seed=1)
    assert same(first, second) and not same(first, other)


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    run("plain", [saving(tmp_path)])
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path)
    checkpoint["gumbel_search"]["randomness"] *= 2
    torch.save(checkpoint, path)
    with pytest.raises(UsageError, match="devices: the checkpoint is of 2 processes, this search has 1"):
        run("plain", resume_from=path)


def test_a_checkpoint_of_a_search_with_other_budgets_is_refused(tmp_path):
    run("plain", [saving(tmp_path)], max_params=30)
    with pytest.raises(
        UsageError, match="max_params: the checkpoint is of a search with 30, this one has None; give"
    ):
        run("plain", resume_from=tmp_path / "epoch=0.ckpt", max_flops=40)


def test_every_generator_is_saved_and_restored():
    loaders = {"train": loader(generator=its_own_generator(0)), "val": [loader()]}

    def draws():
        own = torch.rand(1, generator=loaders["train"].generator)
        return random.random(), np.random.rand(), float(torch.rand(1)), float(own)

    state = random_state(loaders)
    first = draws()
    assert first != draws()
    restore_random_state(state, loaders)
    assert draws() == first


def test_what_is_drawn_in_between_changes_nothing():
    with unchanged_randomness([]):
        inside = float(torch.rand(1)), random.random(), np.random.rand()
    assert inside == (float(torch.rand(1)), random.random(), np.random.rand())
