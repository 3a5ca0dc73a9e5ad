"""Which costs a search knows, when, and what it does to find them."""

import nni
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableDropout, MutableMultiheadAttention
from small_searches import Minimal, Nested, evaluator, numbers, search
from torch import nn

from nni_gumbel import GumbelSearch, UsageError
from nni_gumbel.complexity.latency import LatencyTable
from nni_gumbel.search.steps import dropout_off, inputs_of


def known(**settings):
    return {
        name
        for name in search(evaluator(max_epochs=1), **settings).structure_summary()
        if name.startswith("expected_")
    }


def test_parameters_are_always_reported_and_what_is_priced_or_limited_beside_them():
    assert known() == {"expected_params"}
    assert known(cost="flops") == {"expected_params", "expected_flops"}
    assert known(max_flops=1000) == {"expected_params", "expected_flops"}


def test_what_is_priced_is_what_falls():
    def expected(word, **settings):
        return search(evaluator(max_epochs=6), cost="flops", **settings).structure_summary()[
            f"expected_{word}"
        ]

    assert expected("flops", cost_weight=10.0) < expected("flops", cost_weight=0.0)


def test_looking_at_the_inputs_changes_nothing_of_the_search():
    """The same weights with a cost that needs an example as with one that needs none, neither being weighed."""
    with_example, without = (search(evaluator(), cost=cost, cost_weight=0.0) for cost in ("flops", "params"))
    first, second = numbers(with_example), numbers(without)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_inputs_are_those_of_the_first_call_and_nothing_is_computed():
    model, calls = nn.Linear(2, 1), []
    model.register_forward_hook(lambda *args: calls.append(args))
    state = torch.get_rng_state()

    def step():
        torch.rand(3)
        model(torch.ones(1, 2))
        model(torch.zeros(1, 2))

    args, kwargs = inputs_of(model, step)
    assert torch.equal(args[0], torch.ones(1, 2)) and kwargs == {} and not calls
    assert torch.equal(torch.get_rng_state(), state)
    model(torch.ones(1, 2))
    assert len(calls) == 1  # the hook is gone


class Aside(Minimal):
    """Calls what is in the model, and not the model."""

    def training_step(self, batch, batch_idx):
        return self.model.forward(batch[0]).square().mean()


def test_an_evaluator_that_passes_its_model_by_is_told_where_an_example_is_needed():
    with pytest.raises(UsageError, match="training_step: it does not call its model as self.model"):
        search(evaluator(Aside()), max_flops=1000)
    search(evaluator(Aside(), max_epochs=1))


def wide(sample):
    """A cost of one's own: the outer choice's first candidate is dear."""
    return 5.0 if sample["outer"] == 0 else 1.0


def test_a_function_is_a_cost_too_and_its_value_for_the_network_found_is_reported():
    cheap = search(evaluator(max_epochs=8), cost=wide, cost_weight=50.0, arc_learning_rate=0.5)
    summary = cheap.structure_summary()
    assert cheap.export()["outer"] == 1 and summary["chosen_cost"] == 1.0
    assert "expected_params" in summary and "expected_cost" not in summary


def test_a_prior_by_cost_wants_a_cost_that_is_a_sum():
    with pytest.raises(UsageError, match="prior: 'cost' needs a cost that is a sum over choices"):
        search(cost=wide, prior="cost")


def test_a_cost_that_is_neither_a_word_nor_a_function_is_refused():
    with pytest.raises(UsageError, match="cost: 'time' is out of range; give one of params, flops, latency"):
        GumbelSearch(cost="time")


class Dropped(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 4), nn.Identity()], label="layer")
        self.dropout = MutableDropout(nni.choice("rate", [0.0, 0.3, 0.6]))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.dropout(self.layer(x)))


@pytest.mark.parametrize("preset", ["none", "gradual"])
def test_a_search_of_a_dropout_rate_by_gradient_alone_says_what_it_cannot_see(caplog, preset):
    GumbelSearch(preset=preset).mutate_model(Dropped())
    told = [record.getMessage() for record in caplog.records if "dropout rate 'rate'" in record.getMessage()]
    assert len(told) == (preset == "gradual")


class Attentive(ModelSpace):
    def __init__(self):
        super().__init__()
        heads = nni.choice("heads", [1, 2])
        self.attention = MutableMultiheadAttention(4, heads, dropout=nni.choice("rate", [0.0, 0.5]))

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_the_dropout_of_attention_is_a_dropout(caplog):
    supernet = GumbelSearch(preset="gradual").mutate_model(Attentive()).train()
    assert "dropout rate 'rate'" in caplog.text and "heads" not in caplog.text
    x = torch.randn(2, 3, 4)
    with dropout_off(supernet):
        assert torch.equal(supernet(x), supernet(x))
    assert not torch.equal(supernet(x), supernet(x))


def test_nothing_is_said_of_dropout_where_no_rate_is_chosen(caplog):
    GumbelSearch().mutate_model(Nested())
    assert "dropout" not in caplog.text


@pytest.mark.slow
def test_a_latency_is_measured_for_one_example_once_and_limits_what_is_found():
    table = LatencyTable()
    module = search(evaluator(max_epochs=2), cost="latency", latency_table=table)
    measured, summary = module.costs.latency_table, module.structure_summary()
    assert table.milliseconds == {} and measured.milliseconds and summary["expected_latency"] > 0
    assert all("(1, 4)" in signature or "[1, 4]" in signature for signature in measured.milliseconds)
    most = summary["expected_latency"]
    again = search(evaluator(max_epochs=2), max_latency_ms=most, latency_table=measured)
    assert again.costs.latency_table.milliseconds == measured.milliseconds
    used = {label: again.distribution.outcome(label, value) for label, value in again.export().items()}
    indices = {label: int(outcome.argmax()) for label, outcome in used.items()}
    assert again.costs.by_word["latency"].at(indices) <= most
