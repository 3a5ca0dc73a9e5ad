"""The evaluator lives in a search as in a plain training: its hooks, its steps, its class and its validations."""

import nni
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableDropout, MutableLinear
from nni.nas.space import RawFormatModelSpace
from pytorch_lightning.core.hooks import CheckpointHooks, ModelHooks
from small_searches import Minimal, Nested, OneCandidate, evaluator, loader, regression, search
from torch import nn
from torch.nn.functional import mse_loss

from nni_gumbel import GumbelSearch, UsageError


def trained(module, **kwargs):
    """A plain training of the network that a search of one candidate trains."""
    evaluator(module, **kwargs).evaluate(OneCandidate().freeze({"only": 0}))


# -- its hooks -----------------------------------------------------------------------------------


class Recording(Minimal):
    """Notes every hook of its own that is called, with what identifies a batch."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def backward(self, loss, *args, **kwargs):
        self.calls.append("backward")
        super().backward(loss, *args, **kwargs)

    def prepare_data(self):
        self.calls.append("prepare_data")

    def teardown(self, stage):
        self.calls.append(f"teardown {stage}")


def _recorded(name):
    def hook(self, *args, **kwargs):
        self.calls.append((name, *(tuple(one[0].shape) for one in args if isinstance(one, (tuple, list)))))
        return getattr(super(Recording, self), name)(*args, **kwargs)

    return hook


for _name in {*vars(ModelHooks), *vars(CheckpointHooks)} - {"configure_sharded_model"}:
    if not _name.startswith("_"):
        setattr(Recording, _name, _recorded(_name))


def test_every_hook_is_called_as_in_a_plain_training(tmp_path):
    def given():
        saved = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss")
        return dict(
            num_sanity_val_steps=1, accumulate_grad_batches=2, val_check_interval=0.5,
            enable_checkpointing=True, callbacks=[saved], max_epochs=2,
        )  # fmt: skip

    plain, ours = Recording(), Recording()
    trained(plain, **given())
    search(evaluator(ours, **given()), OneCandidate)
    assert ours.calls == plain.calls and len(plain.calls) > 100


# -- its steps -----------------------------------------------------------------------------------


class Short(LightningModule):
    """Lightning lets a step leave out the number of its batch."""

    def training_step(self, batch):
        return mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", mse_loss(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_steps_may_leave_out_the_number_of_the_batch():
    module = search(evaluator(Short()))
    assert "val_loss" in module.trainer.callback_metrics


def test_a_step_that_draws_batches_itself_is_refused_in_one_line():
    class Drawing(Minimal):
        def training_step(self, dataloader_iter):
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(UsageError, match="training_step: it takes its batches from dataloader_iter"):
        search(evaluator(Drawing()))


def test_several_validation_loaders_need_a_step_that_tells_them_apart_as_in_a_plain_training():
    several = {"val": [loader(seed=1), loader(seed=2)]}
    for run in (trained, lambda module, **data: search(evaluator(module, **data))):
        with pytest.raises(RuntimeError, match="but no `dataloader_idx` argument in"):
            run(Minimal(), **several)


def test_an_evaluator_without_a_validation_step_is_not_validated():
    class Blind(Minimal):
        validation_step = pl.LightningModule.validation_step

    assert "val_loss" not in search(evaluator(Blind(), max_epochs=1)).trainer.callback_metrics


# -- its class, and the script that it stands in ---------------------------------------------------


def traced(losses):
    """The evaluator's module of a script: traced, and with a list of the script's that its step appends to."""

    @nni.trace
    class Collecting(LightningModule):
        def training_step(self, batch, batch_idx):
            loss = mse_loss(self.model(batch[0]), batch[1])
            losses.append(float(loss))
            return loss

        validation_step = Minimal.validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Collecting


def test_what_its_steps_collect_in_a_list_of_the_script_is_in_that_list():
    losses = []
    kind = traced(losses)
    step = kind.training_step
    search(evaluator(kind(), max_epochs=3))
    assert kind.training_step is step
    assert len(losses) == 3 * 4 * 2  # a structure step and a weight step a batch


def test_an_exported_network_is_of_the_classes_of_the_script():
    calls = []

    @nni.trace
    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    class Own(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice([Counting(4, 1), nn.Linear(4, 1)], label="layer")

        def forward(self, x):
            return self.layer(x)

    forward = Counting.forward
    strategy = GumbelSearch()
    strategy.initialize(RawFormatModelSpace(Own(), evaluator()), SequentialExecutionEngine())
    networks = [model.executable_model() for model in strategy.list_models(limit=2)]
    for network in networks:
        network(torch.zeros(3, 4))
    assert Counting.forward is forward and calls == [3]


# -- its validations -----------------------------------------------------------------------------


class Validated(Minimal):
    """Counts in its class, as a script counts in a global."""

    examples = []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.examples[-1] += len(batch[0])

    def on_validation_epoch_start(self):
        self.examples.append(0)


@pytest.mark.parametrize(
    "trainer",
    [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.5}, {"limit_val_batches": 1},
     {"limit_val_batches": 0}, {"num_sanity_val_steps": 2}],
)  # fmt: skip
def test_it_validates_as_often_as_the_trainer_says_and_every_example_once(trainer):
    runs = []
    for run in (trained, lambda module, **given: search(evaluator(module, **given), OneCandidate)):
        Validated.examples = []
        run(Validated(), max_epochs=4, **trainer)
        runs.append(Validated.examples)
    assert runs[0] == runs[1]


def test_nnis_evaluator_writes_the_network_found_as_onnx_and_not_the_supernet(tmp_path, monkeypatch):
    given = regression(export_onnx=True)
    path = given.module.export_onnx
    exported = []
    monkeypatch.setattr(given.module, "to_onnx", lambda *args, **kwargs: exported.append(args))
    module = search(given)
    assert exported == [] and given.module.export_onnx == path
    trainer = evaluator(max_epochs=1).trainer
    given.module.set_model(Nested().freeze(module.export()))
    trainer.fit(given.module, loader(), loader(seed=1))
    assert len(exported) == 1


# -- a last batch of one example -------------------------------------------------------------------


class Normalised(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())], label="layer")
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)))


@pytest.mark.parametrize(
    "data",
    [{"val": loader(count=17, seed=1)}, {"val": loader(count=4, seed=1, batch_size=1)},
     {"train": loader(count=34), "val": None}],
    ids=["a rest of one", "batches of one", "a split that leaves a rest of one"],
)  # fmt: skip
def test_a_batch_of_one_example_meets_no_batch_norm_in_training_mode(data):
    module = search(evaluator(max_epochs=1, **data), Normalised)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert all(part.training for part in module.model.modules() if isinstance(part, nn.BatchNorm1d))


def test_a_batch_of_one_image_is_normalised_over_its_pixels_as_in_a_plain_training():
    modes = []

    class Watched(nn.BatchNorm1d):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    class OverTime(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice([nn.Conv1d(1, 2, 1), nn.Conv1d(1, 2, 3, padding=1)], label="layer")
            self.norm, self.head = Watched(2), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.norm(self.layer(x[:, None])).flatten(1))

    single = loader(count=3, batch_size=1)
    search(evaluator(train=single, val=single, max_epochs=1, limit_val_batches=0), OverTime)
    assert modes and all(modes)


# -- a layer of fixed width behind a chosen one ----------------------------------------------------


def test_a_layer_that_does_not_fit_a_chosen_width_is_named_with_the_choice():
    class Fixed(ModelSpace):
        def __init__(self):
            super().__init__()
            width = nni.choice("width", [8, 16])
            self.first, self.last = MutableLinear(4, width), MutableLinear(width, 1)
            self.norm = nn.BatchNorm1d(self.last.in_features)
            self.drop = MutableDropout(nni.choice("rate", [0.1, 0.2]))

        def forward(self, x):
            return self.last(self.drop(self.norm(self.first(x))))

    with pytest.raises(UsageError, match="choice 'width': BatchNorm1d at 'norm' takes one width") as caught:
        search(evaluator(max_epochs=1), Fixed)
    assert "\n" not in str(caught.value)


def test_an_error_of_a_network_without_a_chosen_size_stays_as_it_is():
    class Wrong(Nested):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 1)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        search(evaluator(max_epochs=1), Wrong)
