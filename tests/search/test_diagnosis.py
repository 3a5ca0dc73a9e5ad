"""A loss that is not finite is told in one line that names the choice and the candidate behind it."""

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from small_searches import Minimal, evaluator, loader, search
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nni_gumbel.errors import UsageError


class Exploding(nn.Module):
    """Infinite from its third call on; half of what it returns is fine."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.masked_fill(torch.arange(x.shape[1]) < 2, float("inf")) if self.calls > 2 else x


class Space(ModelSpace):
    def __init__(self, bad=nn.Identity, first=nn.Identity, last=nn.Identity):
        super().__init__()
        self.stem = first()
        self.layer = LayerChoice({"good": nn.Identity(), "bad": bad()}, label="layer")
        self.head = nn.Sequential(nn.Linear(4, 1), last())

    def forward(self, x):
        return self.head(self.layer(self.stem(x)))


def message(space, evaluate=None, **settings):
    with pytest.raises(UsageError) as caught:
        search(evaluate, space, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_candidate_that_returned_the_number_is_named():
    line = message(Space(Exploding))
    assert line.startswith("loss: inf in the structure step 1 is not finite; ")
    assert "candidate 'bad' of choice 'layer' returned inf; mend or remove it" in line


def test_of_candidates_inside_candidates_the_inner_one_is_named():
    def nested():
        return nn.Sequential(LayerChoice([nn.Identity(), Exploding()], label="inner"), nn.Identity())

    assert "candidate '1' of choice 'inner' returned inf" in message(Space(nested))


def test_a_module_outside_of_all_candidates_is_named_by_its_place():
    assert "Exploding at 'head.1' returned inf" in message(Space(last=Exploding))
    # The candidates behind it return such numbers, too, but did not make them.
    assert "Exploding at 'stem' returned inf" in message(Space(first=Exploding))


def test_no_module_is_named_where_the_batch_is_the_cause():
    x = torch.full((32, 4), float("nan"))
    bad = DataLoader(TensorDataset(x, torch.zeros(32, 1)), batch_size=8)
    line = message(Space(), evaluator(train=bad, val=bad))
    assert line == (
        "loss: nan in the structure step 0 is not finite; "
        "the batch itself holds numbers that are not finite; check the data"
    )


@pytest.mark.parametrize("result", [None, {"los": torch.zeros(1)}])
def test_a_step_without_a_loss_is_refused(result):
    class Without(Minimal):
        def training_step(self, batch, batch_idx):
            return result

    assert message(Space(), evaluator(Without())).startswith("training_step: it returned no loss but ")


def test_it_is_told_in_the_weight_step_too():
    assert "in the weight step 2 is not finite; candidate 'bad'" in message(Space(Exploding), warmup_epochs=1)


def test_the_gradient_of_a_candidate_that_is_not_finite_is_an_error_and_the_logits_stay_numbers():
    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).sqrt()

    space = Space(last=Root)
    line = message(space)
    assert line.startswith("choice 'layer': the gradient of its logits in the structure step 0 is not finite")


def test_nothing_is_watched_while_losses_are_finite():
    space = Space()
    search(evaluator(max_epochs=1, train=loader()), space)
    assert not any(module._forward_hooks for module in space.modules())
