"""Short trainings: each begins with the weights, buffers, optimiser and schedules of the first, which runs anew."""

import math

import pytest
import torch
from small_searches import Minimal, evaluator, loader, search

from nni_gumbel.search.course import segments

EPOCHS, BATCHES = 4, 28
STEPS = EPOCHS * BATCHES
RATE = 0.02


class Recording(Minimal):
    """Keeps what a step begins with, batch by batch."""

    def __init__(self, interval="step", warm_up=0):
        super().__init__()
        self.interval = interval
        self.begins, self.seen = [], False

    def on_train_batch_start(self, batch, batch_idx):
        self.seen = False

    def training_step(self, batch, batch_idx):
        # A step may run several batches; the first pass of it is seen, the last one counts where no gradient is taken.
        if not self.seen:
            self.seen = True
            optimizer = self.trainer.optimizers[0]
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            moments = sum(float(one["exp_avg"].abs().sum()) for one in optimizer.state.values())
            self.begins.append((state, moments, optimizer.param_groups[0]["lr"]))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        length = STEPS if self.interval == "step" else EPOCHS
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def recorded(interval="step", **settings):
    module = Recording(interval)
    data = loader(count=BATCHES * 8)
    search(evaluator(module, data, max_epochs=EPOCHS), preset="none", stages=2, finalists=2, **settings)
    return module.begins


def course(warm_up=0):
    trainings = dict.fromkeys((s.begun, s.over) for s in segments(STEPS - warm_up, 2, 2))
    return [(begun + warm_up, over + warm_up) for begun, over in trainings]


@pytest.fixture(scope="module")
def begins():
    return recorded()


def test_every_training_begins_with_the_weights_and_buffers_of_the_first_step(begins):
    assert len(begins) == STEPS
    for first, end in course():
        assert all(torch.equal(begins[0][0][name], value) for name, value in begins[first][0].items())
        assert any(not torch.equal(begins[0][0][name], value) for name, value in begins[end - 1][0].items())


def test_every_training_begins_with_the_optimiser_of_the_first_step(begins):
    for first, end in course():
        assert begins[first][1] == 0 < begins[end - 1][1]


def test_a_schedule_by_step_runs_through_once_a_training(begins):
    for first, end in course():
        rates = [rate for *_, rate in begins[first:end]]
        assert rates == sorted(rates, reverse=True) and rates[0] == RATE
        assert rates[-1] < 0.1 * RATE


def test_a_schedule_by_epoch_runs_through_once_a_training():
    begins = recorded("epoch")
    for first, end in course():
        rates = {round(rate, 9) for *_, rate in begins[first:end]}
        expected = {round(RATE / 2 * (1 + math.cos(math.pi * e / EPOCHS)), 9) for e in range(EPOCHS)}
        assert rates == expected


def test_after_a_warm_up_every_training_begins_with_what_it_has_learned():
    begins = recorded(warmup_epochs=1)
    ((first, _), *others) = course(warm_up=BATCHES)
    assert begins[first][1] > 0 and {rate for *_, rate in begins[: first + 1]} == {RATE}
    for later, _ in others:
        assert all(torch.equal(begins[first][0][name], value) for name, value in begins[later][0].items())
        assert begins[later][1] == begins[first][1]
