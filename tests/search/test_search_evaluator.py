"""An evaluator is made ready for a search: pairs of batches, a split where there is no validation data."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning
from small_searches import Minimal, Nested, evaluator, loader, search
from torch.utils.data import IterableDataset, TensorDataset, WeightedRandomSampler

from nni_gumbel.errors import UsageError
from nni_gumbel.search.data import split_training_data, take_over


class Data(pl.LightningDataModule):
    """Training and validation data that can be told apart: the first number is 0 or 1."""

    def __init__(self, count=16):
        super().__init__()
        self.count, self.was_set_up = count, 0

    def setup(self, stage):
        self.was_set_up += 1

    def train_dataloader(self):
        return marked(0, self.count)

    def val_dataloader(self):
        return marked(1, self.count)


class DataWithoutValidation(pl.LightningDataModule):
    def train_dataloader(self):
        return marked(0, 32)


class DataForTheStructure(Data):
    def structure_dataloader(self):
        return marked(2, self.count)


def marked(mark, count=16):
    x = torch.randn(count, 4)
    x[:, 0] = mark
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


class Marks(pl.Callback):
    """Which data every part of the search saw."""

    def __init__(self):
        self.pairs, self.validated = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.pairs.append({name: float(part[0][0, 0]) for name, part in batch.items()})

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(float(batch[0][0, 0]))


def seen(datamodule=None, **loaders):
    marks = Marks()
    trainer = evaluator(max_epochs=1, callbacks=[marks]).trainer
    search(Lightning(Minimal(), trainer, datamodule=datamodule, **loaders))
    return marks


@pytest.mark.parametrize(
    ("data", "structure"), [({"datamodule": Data()}, 1), ({"datamodule": DataForTheStructure()}, 2),
                            ({"train_dataloaders": marked(0), "val_dataloaders": marked(1)}, 1)],
)  # fmt: skip
def test_the_structure_learns_on_validation_data_and_the_weights_on_training_data(data, structure):
    marks = seen(**data)
    assert marks.pairs == [{"train": 0, "val": structure}] * 2 and marks.validated == [1, 1]


def test_the_shorter_of_two_loaders_starts_again():
    marks = seen(train_dataloaders=marked(0, 24), val_dataloaders=marked(1, 8))
    assert marks.pairs == [{"train": 0, "val": 1}] * 3


@pytest.mark.parametrize("loaders", [[marked(1), marked(2)], {"a": marked(1), "b": marked(2)}])
def test_of_several_validation_loaders_the_structure_learns_on_the_first(loaders):
    class Several(Minimal):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            pass

    marks = Marks()
    search(evaluator(Several(), train=marked(0), val=loaders, max_epochs=1, callbacks=[marks]))
    assert marks.pairs[0]["val"] == 1


def test_an_empty_list_of_validation_loaders_is_refused_in_one_line():
    with pytest.raises(UsageError, match="val_dataloaders: there is none in the list; .*"):
        search(evaluator(val=[]))


@pytest.mark.parametrize(
    "data", [{"train_dataloaders": marked(0, 32)}, {"datamodule": DataWithoutValidation()}]
)
def test_without_validation_data_the_training_set_is_split_and_the_split_is_logged(data, caplog):
    with caplog.at_level(logging.INFO, "nni_gumbel"):
        marks = seen(**data)
    assert len(marks.pairs) == 2 and len(marks.validated) == 2
    (line,) = [r.getMessage() for r in caplog.records if r.name == "nni_gumbel.search.data"]
    assert "16 of its 32 training examples become validation data" in line


def test_the_parts_of_a_split_share_no_example_and_lose_none():
    train, structure, validation = split_training_data(loader())
    parts = [set(part.dataset.indices) for part in (train, structure, validation)]
    assert parts[1] == parts[2] and not parts[0] & parts[1] and parts[0] | parts[1] == set(range(32))
    assert len(parts[0]) == len(parts[1]) == 16


def test_a_split_is_the_same_each_time_and_keeps_the_loaders_ways():
    first, second = (split_training_data(loader(batch_size=5, drop_last=True)) for _ in range(2))
    assert first[0].dataset.indices == second[0].dataset.indices
    assert [part.batch_size for part in first] == [5, 5, 5]
    assert [part.drop_last for part in first] == [True, True, False]
    assert [type(part.sampler).__name__[:6] for part in first] == ["Random", "Random", "Sequen"]


class Stream(IterableDataset):
    def __iter__(self):
        yield from loader().dataset


@pytest.mark.parametrize(
    "wrong",
    [
        DataLoader(Stream(), batch_size=8),
        DataLoader(loader().dataset, sampler=WeightedRandomSampler([1.0] * 32, 32)),
        loader(count=1),
        [1, 2, 3],
    ],
)
def test_data_that_cannot_be_split_is_refused_in_one_line(wrong):
    with pytest.raises(
        UsageError, match="train_dataloaders: .*; give the evaluator validation data"
    ) as caught:
        split_training_data(wrong)
    assert "\n" not in str(caught.value)


def test_the_evaluator_that_was_given_can_train_afterwards():
    data = Data()
    given = Lightning(Minimal(), evaluator(max_epochs=1).trainer, datamodule=data)
    search(given)
    assert isinstance(data.train_dataloader(), torch.utils.data.DataLoader) and given.module is not None
    given.trainer.fit_loop.max_epochs = 1
    given.evaluate(Nested().freeze({"outer": 1, "inner": 0}))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("nothing", "evaluator: str is no Lightning evaluator"),
        (evaluator(train=None), "evaluator: it has no training data"),
        (evaluator(sync_batchnorm=True, strategy="ddp", devices=2), "sync_batchnorm: it replaces"),
    ],
)
def test_what_is_no_evaluator_of_a_training_is_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        take_over(wrong, None)


class Halving(Minimal):
    """A hook on batches, as for augmentation on a GPU."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x * 0.5, y


def test_hooks_on_batches_see_one_batch_at_a_time():
    marks = Marks()
    search(evaluator(Halving(), train=marked(2), val=marked(4), max_epochs=1, callbacks=[marks]))
    assert marks.pairs == [{"train": 1, "val": 2}] * 2 and marks.validated == [2, 2]


def test_hooks_of_a_data_module_on_batches_do_too():
    class Doubling(Data):
        def setup(self, stage):
            self.summand = 1

        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert self.trainer.training or self.trainer.validating
            return batch[0] + self.summand, batch[1]

    marks = seen(Doubling())
    assert marks.pairs == [{"train": 1, "val": 2}] * 2 and marks.validated == [2, 2]


def test_hooks_around_a_batch_get_the_training_batch():
    class Looking(Minimal):
        seen = []

        def on_train_batch_start(self, batch, batch_idx):
            self.seen.append(float(batch[0][0, 0]))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen.append(float(batch[0][0, 0]))

    search(evaluator(Looking(), train=marked(2), val=marked(4), max_epochs=1))
    assert Looking.seen == [2] * 4
