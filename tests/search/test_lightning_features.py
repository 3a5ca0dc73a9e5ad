"""What people know from Lightning works in a search: precision, callbacks, limits."""

import math

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace
from small_searches import Minimal, evaluator, loader, numbers, search
from torch import nn

from nni_gumbel import UsageError

GPU = dict(accelerator="gpu", devices=1)


def healthy(module):
    moved = all(
        logits.dtype == torch.float32 and logits.abs().max() > 0
        for logits in module.distribution.logits.values()
    )
    return moved and all(torch.isfinite(value.float()).all() for value in numbers(module).values())


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "straight-through-gumbel"},
        {"preset": "gdas"},
        {"preset": "darts"},
        {"preset": "none"},
    ],
)
def test_in_bfloat16_the_logits_stay_in_float32_and_everything_is_finite(settings):
    assert healthy(search(evaluator(max_epochs=1, precision="bf16-mixed"), **settings))


def test_early_stopping_follows_a_validation_metric():
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=2, min_delta=1e9)
    module = search(evaluator(max_epochs=50, callbacks=[stopping]))
    assert module.trainer.current_epoch == 3


def test_checkpoints_follow_a_validation_metric(tmp_path):
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}-{step}")
    search(evaluator(enable_checkpointing=True, callbacks=[best]))
    assert best.best_model_score is not None and list(tmp_path.glob("epoch=*-step=*.ckpt"))


@pytest.mark.parametrize(
    ("trainer", "batches", "updates"),
    [
        ({"max_steps": 5}, 5, 5),
        ({"max_steps": 3, "accumulate_grad_batches": 3}, 7, 3),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 8, 4),
    ],
)
def test_a_search_ends_at_the_trainers_limit_with_its_last_temperature(trainer, batches, updates):
    seen = Temperatures()
    given = evaluator(**{"max_epochs": 20, "callbacks": [seen], **trainer})
    assert search(given, warmup_epochs=1, temperature_end=0.5).trainer.global_step == updates
    assert len(seen.temperatures) == batches and seen.temperatures.index(0.5) == batches - 1


class Temperatures(pl.Callback):
    def __init__(self):
        self.temperatures = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.temperatures.append(module.temperature)


def test_validation_within_an_epoch_does_not_disturb_the_structure():
    # Without noise: a validation takes random numbers of its own.
    plain, often = (
        search(
            evaluator(train=loader(shuffle=False), val=loader(seed=1, shuffle=False), val_check_interval=interval),
            Wide, preset="darts",
        ).distribution.logits["layer"]
        for interval in (1.0, 1)
    )  # fmt: skip
    assert torch.equal(plain, often) and plain.abs().max() > 0


def test_an_evaluator_that_returns_a_dict_is_searched_too():
    class Dict(Minimal):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "more": 1}

    assert healthy(search(evaluator(Dict(), max_epochs=1)))


class Wide(ModelSpace):
    """Gradients that vanish in fp16 unless the loss is scaled."""

    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 8), nn.ReLU())], label="layer")
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.layer(x)) * 1e-3


# -- fp16 -----------------------------------------------------------------------------------------


class GradientNorms(Minimal):
    """The norm of the weights' gradient as a limit on it sees it."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        flat = torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])
        self.norms.append(float(flat.norm()))
        super().configure_gradient_clipping(optimizer, *args, **kwargs)


def half_precision(device):
    """The Trainer's options for fp16; on a CPU Lightning offers it only as a plugin."""
    if device == "cuda":
        return {"precision": "16-mixed", **GPU}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_half_precision_gradients_are_unscaled_before_they_are_limited(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    runs = []
    for options in (GPU if device == "cuda" else {}, half_precision(device)):
        module = GradientNorms()
        given = evaluator(module, train=loader(shuffle=False), accumulate_grad_batches=2, **options)
        result = search(given, Wide, preset="darts", gradient_clip_val=1e-3)
        assert healthy(result)
        norm = next(norm for norm in module.norms if math.isfinite(norm))
        runs.append((norm, result.distribution.logits["layer"].detach().cpu()))
    (norm, logits), (norm_of_half, logits_of_half) = runs
    assert norm_of_half == pytest.approx(norm, rel=0.1)
    # Adam moves logits by the sign of their gradient; a step whose scaled loss overflowed is left out.
    assert torch.allclose(logits, logits_of_half, atol=0.06)


def test_in_half_precision_a_loss_that_overflows_once_does_not_end_the_search():
    options = half_precision("cpu")
    module = search(evaluator(Large(), max_epochs=4, **options), Wide)
    assert module.trainer.precision_plugin.scaler.get_scale() < 2.0**16 and healthy(module)


class Large(Minimal):
    """A loss whose scaled gradient is too large for fp16."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 1e4


@pytest.mark.gpu
def test_a_search_on_a_gpu_is_resumed_to_the_bit(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = search(evaluator(max_epochs=3, enable_checkpointing=True, callbacks=[saved], **GPU))
    again = evaluator(max_epochs=3, **GPU)
    again.fit_kwargs["ckpt_path"] = str(tmp_path / "epoch=1.ckpt")
    resumed = search(again, seed=5)
    first, second = numbers(whole), numbers(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), torch.zeros(1)


def test_training_data_of_unknown_length_needs_a_limit():
    endless = torch.utils.data.DataLoader(Endless(), 8)
    with pytest.raises(UsageError, match="limit_train_batches: the training data does not say"):
        search(evaluator(train=endless))
    assert search(evaluator(train=endless, limit_train_batches=3)).progress == 1


class LooseEnds(ModelSpace):
    """What follows the cell takes two nodes, and a sample may leave one."""

    def __init__(self):
        super().__init__()
        self.cell = Cell({"a": nn.Linear(4, 4), "b": nn.Identity()}, 2, merge_op="loose_end", label="cell")
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.cell(x))


def test_a_consumer_that_does_not_accept_every_width_is_told_before_the_search(caplog):
    search(space=LooseEnds)
    assert "choice 'cell': merge_op 'loose_end' gives an output of 1 to 2 nodes" in caplog.text
