"""A search whose weight step runs one network."""

import pytest
import pytorch_lightning as pl
import torch
from small_searches import Minimal, Nested, evaluator, loader, numbers, search

MODES = ["all", "two", "sampled"]


class Ran(pl.Callback):
    """Which candidates ran in each weight step, and which had a gradient."""

    def __init__(self):
        self.active, self.trained = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        joint = module.distribution.joint_sample
        self.active.append({label: joint.active(label) for label in module.distribution.laws})
        choice = module.model.outer
        self.trained.append([p.grad is not None for p in choice[0].parameters()])
        assert joint.is_network


@pytest.mark.parametrize("mode", MODES)
def test_the_weight_step_runs_one_network_and_leaves_the_others_without_gradient(mode):
    ran = Ran()
    given = evaluator(train=loader(count=160), callbacks=[ran])
    search(given, execution="sampled", structure_candidates=mode)
    assert all(len(active["outer"]) == 1 for active in ran.active)
    assert {active["outer"][0] for active in ran.active} == {0, 1}
    for active, trained in zip(ran.active, ran.trained):
        expected = active["outer"] == [0] and active["inner"] == [0]
        assert trained == [expected] * len(trained)


@pytest.mark.parametrize(
    ("level", "mode", "estimator"),
    [
        ("bilevel", "all", "soft"),
        ("bilevel", "all", "straight-through"),
        ("bilevel", "two", "soft"),
        ("bilevel", "sampled", "straight-through"),
        ("unrolled", "all", "soft"),
        ("unrolled", "two", "soft"),
        ("unrolled", "sampled", "soft"),
        ("single", "sampled", "soft"),
    ],
)
def test_every_combination_moves_logits_and_weights_and_can_be_repeated(level, mode, estimator):
    settings = {"execution": "sampled", "structure_candidates": mode, "estimator": estimator, "level": level}
    module = search(evaluator(max_epochs=1), **settings)
    again = search(evaluator(max_epochs=1), **settings)
    assert all(torch.equal(a, b) for a, b in zip(numbers(module).values(), numbers(again).values()))
    assert all(logits.abs().max() > 0 for logits in module.distribution.logits.values())


def test_at_level_single_the_network_of_the_structure_is_the_one_that_learns():
    ran = {"networks": 0}

    class Watched(Minimal):
        def training_step(self, batch, batch_idx):
            joint = self.trainer.lightning_module.distribution.joint_sample
            ran["networks"] += len(joint.active("outer")) == 1
            return super().training_step(batch, batch_idx)

    search(
        evaluator(Watched(), max_epochs=1),
        Nested,
        level="single",
        execution="sampled",
        structure_candidates="sampled",
    )
    assert ran["networks"] == 4


def test_during_a_warm_up_networks_are_drawn_uniformly():
    class Decided(pl.Callback):
        drawn = []

        def on_train_start(self, trainer, module):
            module.distribution.logits["outer"].data.copy_(torch.tensor([50.0, -50.0]))

        def on_train_batch_end(self, trainer, module, *args, **kwargs):
            if trainer.current_epoch == 0:
                self.drawn.append(module.distribution.joint_sample.active("outer")[0])

    given = evaluator(train=loader(count=160), callbacks=[Decided()])
    search(given, execution="sampled", warmup_epochs=1, temperature_start=1.0)
    assert 4 <= sum(Decided.drawn) <= 16 and len(Decided.drawn) == 20


@pytest.mark.parametrize(("warmup", "warned"), [(0, True), (1, False)])
def test_a_sampled_search_without_a_warm_up_is_warned(caplog, warmup, warned):
    given = evaluator(max_epochs=5, limit_train_batches=1)
    search(given, execution="sampled", warmup_epochs=warmup)
    lines = [
        record.getMessage() for record in caplog.records if "execution: 'sampled'" in record.getMessage()
    ]
    assert bool(lines) == warned and all("about 2 of these 5 epochs" in line for line in lines)
