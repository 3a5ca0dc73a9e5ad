"""The default course of a search as a whole: what it finds, what it keeps to, and that it can be interrupted."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from budgeted_spaces import Sized
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from small_searches import Minimal, Nested, evaluator, loader, numbers, search
from torch import nn

from nni_gumbel.complexity.params import count_parameters
from nni_gumbel.errors import UsageError

STEPS = 112  # a stage and two finalists


def searched(
    space=Nested, seed=0, module=None, epochs=4, steps=STEPS, resume_from=None, trainer=None, **settings
):
    given = evaluator(
        module or Minimal(adam), loader(count=steps // epochs * 8), loader(count=16, seed=1),
        **{"max_epochs": epochs, **(trainer or {})},
    )  # fmt: skip
    if resume_from is not None:
        given.fit_kwargs["ckpt_path"] = str(resume_from)
    return search(given, space, seed, **{"preset": "none", "stages": 2, "finalists": 2, **settings})


def adam(parameters, rate=0.02):
    optimizer = torch.optim.Adam(parameters, lr=rate)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


class Noise(nn.Module):
    def forward(self, x):
        return torch.randn_like(x)


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


class Planted(ModelSpace):
    """Two layers, one label in two places: only identities let what is asked for pass undisturbed."""

    def __init__(self):
        super().__init__()
        candidates = [Noise, nn.Identity, Zero, nn.Softsign]
        self.first = LayerChoice([make() for make in candidates], label="layer")
        self.second = LayerChoice([make() for make in candidates], label="layer")
        self.third = LayerChoice([make() for make in reversed(candidates)], label="last")
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x))))


class Inputs(ModelSpace):
    """A 2-subset, gates, and a choice inside a candidate of another one."""

    def __init__(self):
        super().__init__()
        self.two = InputChoice(4, n_chosen=2, reduction="mean", label="two")
        self.gates = InputChoice(3, n_chosen=None, reduction="sum", label="gates")
        self.nested = Nested()

    def forward(self, x):
        x = self.two([x, x * x, x.tanh(), x * 0])
        return self.nested(self.gates([x, -x, x * 0.5]))


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_answer_is_found(seed):
    module = Minimal(lambda parameters: adam(parameters, rate=0.1))
    found = searched(Planted, seed, module, steps=400, stages=3, finalists=3, cost_weight=0.0).export()
    assert found == {"layer": 1, "last": 2}


@pytest.mark.parametrize("space", [Nested, Inputs])
def test_a_search_ends_with_every_choice_decided_and_a_network_that_nni_freezes(space):
    module = searched(space)
    assert module.structure_summary()["chosen_probability"] == pytest.approx(1)
    assert space().freeze(module.export())(torch.zeros(8, 4)).shape == (8, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_the_shortest_search_ends_with_a_network_too(steps, caplog):
    with caplog.at_level(logging.WARNING):
        module = searched(trainer={"max_steps": steps})
    assert module.export() and module.structure_summary()["chosen_probability"] == pytest.approx(1)
    assert f"{steps} steps are too few for 2 and 2" in caplog.text


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_search_that_is_stopped_early_decides_by_what_it_knows(epoch):
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch == epoch

    module = searched(epochs=16, trainer={"callbacks": [Stops()]})  # in a stage, and in a finalist's training
    assert module.trainer.current_epoch == epoch + 1
    assert module.structure_summary()["chosen_probability"] == pytest.approx(1)


def test_every_network_that_is_trained_is_within_the_budget():
    budget = 60
    module = searched(Sized, max_params=budget)
    trained = [module.export(), *module._tournament.population.judged, *module._tournament.finals.networks]
    assert all(count_parameters(Sized().freeze(network)) <= budget for network in trained)


class Two(Planted):
    """Of two networks."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice([Noise(), nn.Identity()], label="layer")
        self.second = self.third = nn.Identity()


def test_of_a_few_networks_each_is_trained_alone_once():
    module = searched(Two, finalists=14, steps=1000)
    assert sorted(network["layer"] for network in module._tournament.finals.networks) == [0, 1]
    assert module.export() == {"layer": 1}


def test_what_a_network_costs_decides_where_it_is_dear():
    assert count_parameters(Sized().freeze(searched(Sized, cost_weight=100.0).export())) == 5


@pytest.mark.parametrize(
    ("settings", "epochs"),
    # After 4, 24, 56 and 92 of the steps: in a stage, and later, in the first finalist, in the second.
    [({}, (0, 5, 13, 22)), ({"max_params": 30}, (5,))],
)
def test_resumed_anywhere_in_its_course_it_ends_as_one_that_was_never_interrupted(tmp_path, settings, epochs):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    whole = searched(epochs=28, trainer={"callbacks": [saving], "enable_checkpointing": True}, **settings)
    for epoch in epochs:
        path = tmp_path / f"epoch={epoch}.ckpt"
        resumed = searched(epochs=28, seed=100 + epoch, resume_from=path, **settings)
        expected, found = numbers(whole), numbers(resumed)
        assert all(torch.equal(expected[name], value) for name, value in found.items())
        assert resumed._tournament.finals.objectives == whole._tournament.finals.objectives


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"steps": 2 * STEPS},
            "max_epochs.: the checkpoint is of a search with 112 steps, this one has 224 steps",
        ),
        ({"stages": 0, "finalists": 0}, "stages: the checkpoint is of a search with 2, this one has 0"),
    ],
)
def test_a_checkpoint_of_another_course_is_refused(tmp_path, settings, words):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    stop = {"callbacks": [saving], "enable_checkpointing": True}
    searched(trainer=stop)
    with pytest.raises(UsageError, match=words):
        searched(resume_from=tmp_path / "epoch=0.ckpt", **settings)


def test_the_same_seed_finds_the_same_numbers_twice():
    first, second = numbers(searched()), numbers(searched())
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_a_single_network_is_validated():
    class Looks(Minimal):
        seen = []

        def validation_step(self, batch, batch_idx):
            module = self.trainer.lightning_module
            weights = module.distribution.joint_sample.weights("outer").tolist()
            self.seen.append((self.trainer.current_epoch, weights))
            super().validation_step(batch, batch_idx)

    searched(epochs=16, module=Looks(adam))
    assert Looks.seen and all(sorted(weights) == [0.0, 1.0] for _, weights in Looks.seen)
