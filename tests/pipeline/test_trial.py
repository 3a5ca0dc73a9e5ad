"""What a single trial does, without NNI's manager: the export with its front, a random network, a search."""

import csv
import json
import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

import nni_gumbel.results.front
from nni_gumbel.complexity.params import count_parameters
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.command import TrialCommand
from nni_gumbel.pipeline.export import Wish, export, run_export, wished
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task, Trial
from nni_gumbel.results.agreement import Sampled
from nni_gumbel.results.bundle import FACTS, README, load, write_bundle
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference
from nni_gumbel.results.stability import Stability, curve_of
from nni_gumbel.search.module import GumbelSearchModule

COMMAND = TrialCommand("spaces_of_trials:Widths", data="npz:tiny.npz")
# 64 n + n of the first layer, 2 n + 2 of the second.
SIZES = {0: 69, 1: 337, 2: 1342}


class Manager:
    """What a trial asks the manager for."""

    def __init__(self, class_args, trials=(), search_space=None):
        tuner = {"name": "GumbelSearch", "classArgs": class_args}
        self._params = {"tuner": tuner, "searchSpace": search_space or {}, "trialConcurrency": 1}
        self._trials = list(trials)

    def experiment(self):
        return {"id": "EXP", "params": self._params}

    def trials(self):
        return self._trials


def before_the_export(folder, class_args, found=lambda seed: {"width": 1, "activation": "relu"}, **results):
    """A whole experiment but for its export: the manager, the task, the output directory of the export trial.

    ``found`` is the network that a search finds; ``results``, by its width, are reported beside those of a training.
    """
    settings = ExperimentSettings.from_flat(class_args)
    reference = SpaceReference.parse(COMMAND.space)
    trials = []
    while (tasks := Plan(settings, [{}]).next_tasks(trials))[0].stage != "export":
        for task in tasks:
            architecture = task.architecture or found(task.seed)
            size = SIZES[architecture["width"]]
            result = {
                "default": 0.9 - 0.01 * task.seed, "test": 0.8, "key": task.key, "parameters": size, "flops": size,
                "validation_size": 40, "architecture": json.dumps(architecture),
                **{name: by_width[architecture["width"]] for name, by_width in results.items()},
            }  # fmt: skip
            trial_id = f"t{len(trials)}"
            trials.append(Trial(trial_id, len(trials), "succeeded", task.parameters(), result, 0.0, 1.0))
            if task.stage == "train":
                network = reference.build().freeze(architecture)
                write_bundle(
                    folder / "trials" / trial_id / "bundle",
                    network,
                    architecture,
                    reference,
                    Example((torch.zeros(2, 64),)),
                    {},
                )
    output = folder / "trials" / "export"
    output.mkdir()
    return Manager(class_args, trials), tasks[0], output


@pytest.fixture
def experiment(folder):
    return before_the_export(folder, {"train_seeds": 2, "random_baseline": 2})


@pytest.mark.parametrize(
    ("priced", "results", "width"),
    [
        ({}, {}, 1),
        ({"cost": "latency"}, {"table_latency_ms": {1: 9.0, 2: 2.0}}, 2),
        ({}, {"pruned_parameters": {1: 337, 2: 300}, "pruned_flops": {1: 337, 2: 300}}, 2),
        ("spaces_of_trials:fewest", {"own_cost": {1: 3.0, 2: 2.0}}, 2),
    ],
)
def test_of_equal_networks_the_one_is_exported_that_costs_less_of_what_the_searches_price(
    folder, reported, priced, results, width
):
    own = priced if isinstance(priced, str) else None
    class_args = {"search_seeds": 2, "train_seeds": 1, **({} if own else priced)}
    manager, task, output = before_the_export(
        folder, class_args, lambda seed: {"width": 1 + seed, "activation": "relu"}, **results
    )
    run_export(task, TrialCommand(COMMAND.space, data=COMMAND.data, cost=own), manager, output)
    exported = json.loads((output / "gumbel-export" / "architecture.json").read_text())
    assert exported["width"] == width


def test_a_training_reports_what_a_cost_of_ones_own_says_of_its_network(folder, reported):
    from nni_gumbel.pipeline.trial import run_training

    settings = ExperimentSettings.from_flat({"train_epochs": 1}).train_values()
    task = Task("train", 0, 1, settings, {"width": 1, "activation": "relu"})
    output = folder / "trials" / "training"
    output.mkdir(parents=True)
    command = TrialCommand(COMMAND.space, data=COMMAND.data, cost="spaces_of_trials:fewest")
    run_training(task, command, Manager({}), output)
    assert reported["own_cost"] == 2.0


@pytest.mark.parametrize("level", ["cheap", "full"])
def test_a_training_keeps_the_stability_of_its_network_after_its_report(folder, reported, monkeypatch, level):
    from nni_gumbel.pipeline import trial

    measure = trial.measure_stability_of

    def measured(*args, **where):
        assert "default" in reported
        return measure(*args, **where)

    monkeypatch.setattr(trial, "measure_stability_of", measured)
    output = train(folder, COMMAND, {"width": 1, "activation": "relu"}, {"stability": level})
    found = Stability.read(output)
    # One of ten of the 40 training examples is for validation.
    assert found.metric == "acc" and found.examples == 4
    assert found.curves[0].values[0] == pytest.approx(reported["default"])
    assert "weights removed" in [curve.name for curve in found.curves]
    assert ("JPEG" in [curve.name for curve in found.curves]) == (level == "full")


def test_a_training_whose_stability_cannot_be_measured_is_reported_and_warns(
    folder, reported, monkeypatch, caplog
):
    from nni_gumbel.pipeline import trial

    def fails(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr(trial, "measure_stability_of", fails)
    output = train(folder, COMMAND, {"width": 1, "activation": "relu"})
    assert reported["key"] and not (output / "stability.json").exists()
    assert "stability of the network is not known: RuntimeError: no memory" in caplog.text


def test_whatever_fails_after_a_training_is_a_warning_of_its_report(folder, reported, monkeypatch):
    from nni_gumbel.pipeline import trial

    told = []
    monkeypatch.setattr("nni.report_intermediate_result", told.append)

    def failing(what):
        def fails(*_, **__):
            assert told[-1]["default"] >= 0  # the metric is told before
            raise RuntimeError(f"{what} fails")

        return fails

    for name in ("prune", "count_flops", "write_bundle", "result_on_test_part", "measure_latency"):
        monkeypatch.setattr(trial, name, failing(name))
    output = train(folder, COMMAND, {"width": 1, "activation": "relu"}, LATENCY)
    report = Trial("t", 0, "succeeded", result=reported).report
    assert report.default == told[-1]["default"] and report.parameters == report.pruned_parameters == SIZES[1]
    assert (report.flops, report.test, report.latency_ms) == (
        None,
        None,
        None,
    ) and report.table_latency_ms > 0
    assert report.warning.split("; ") == [
        "the network is not pruned: RuntimeError: prune fails",
        "FLOPs are not known: RuntimeError: count_flops fails",
        "FLOPs as exported are not known: RuntimeError: count_flops fails",
        "the weights could not be written: RuntimeError: write_bundle fails",
        "the test result is not known: RuntimeError: result_on_test_part fails",
        "latency_ms is not known: RuntimeError: measure_latency fails",
    ]
    assert not (output / "bundle").exists()


def test_an_export_takes_the_weights_of_the_best_run_that_has_them_and_shows_counts_that_are_not_known(
    folder, reported
):
    class_args = {"train_seeds": 3}
    manager, task, output = before_the_export(folder, class_args)
    search, best, *rest = manager.trials()
    (folder / "trials" / best.id / "bundle").rename(folder / "lost")
    trained = [replace(trial, result={**trial.result, "flops": None}) for trial in (best, *rest)]
    run_export(task, COMMAND, Manager(class_args, [search, *trained]), output)
    text = (folder / "gumbel-export" / "EXP" / README).read_text()
    assert "The weights are of seed 1, not of the best one, 0: its bundle could not be written" in text
    assert "FLOPs | not known" in text


def test_without_stability_nothing_is_measured(folder, reported):
    output = train(folder, COMMAND, {"width": 1, "activation": "relu"}, {"stability": "none"})
    assert reported["key"] and not (output / "stability.json").exists()


def test_an_export_keeps_the_stability_of_the_exported_network_on_the_test_part(experiment, reported):
    manager, task, output = experiment
    run_export(task, COMMAND, manager, output)
    found = Stability.read(output)
    assert found.examples == 20 and len(found.curves) == 4


def test_the_choice_reads_what_the_trainings_kept_of_their_stability(folder, reported, caplog):
    manager, task, output = before_the_export(
        folder, {"search_seeds": 3, "train_seeds": 1}, lambda seed: {"width": seed, "activation": "relu"}
    )
    trained = [trial for trial in manager.trials() if trial.stage == "train"]
    for trial, left in zip(trained, (0.6, 0.9, 0.9)):
        curve = curve_of("noise", "", (0.0, 1.0), (0.9, left))
        kept = Stability(metric="acc", minimize=False, chance=0.5, examples=9, curves=(curve,))
        (folder / "trials" / trial.id / "stability.json").write_text(kept.model_dump_json())
    run_export(task, COMMAND, manager, output)
    assert reported["network"] == "network-2"  # the smallest is less stable than the median
    assert "out: stability 0.625" in (output / "gumbel-export" / README).read_text()
    (folder / "trials" / trained[0].id / "stability.json").write_text("damaged")
    run_export(task, COMMAND, manager, output)
    assert reported["network"] == "network-1" and "holds no stability" in caplog.text


def test_what_is_tied_is_searched_trained_and_loaded_as_one(folder, reported):
    from nni_gumbel import load
    from nni_gumbel.pipeline.trial import run_training

    command = TrialCommand("spaces_of_trials:Tied", data=COMMAND.data)
    parameters = 64 * 64 + 130
    search({"max_params": parameters}, folder, command)
    assert (reported["parameters"], reported["max_params_used"]) == (parameters, 1.0)
    settings = ExperimentSettings.from_flat({"train_epochs": 1}).train_values()
    task = Task("train", 0, 1, settings, json.loads(reported["architecture"]))
    output = folder / "trials" / "training"
    output.mkdir(parents=True)
    run_training(task, command, Manager({}), output)
    assert reported["parameters"] == parameters == count_parameters(load(output / "bundle"))


def test_an_export_has_the_front_in_both_of_its_folders(experiment, reported, folder):
    manager, task, output = experiment
    run_export(task, COMMAND, manager, output)
    for place in (output / "gumbel-export", folder / "gumbel-export" / "EXP"):
        with open(place / "front.csv", newline="") as file:
            assert [row["kind"] for row in csv.DictReader(file)] == ["found", "random", "random"]
        assert (place / "front.png").read_bytes().startswith(b"\x89PNG")
        assert "](front.png)" in (place / README).read_text()
        assert "network-1 and 2 random networks of equal size" in (place / README).read_text()
    assert reported["network"] == "network-1" and "warning" not in reported


@pytest.mark.parametrize(
    ("function", "missing"), [("front_figure", "front.png"), ("write_table", "front.csv")]
)
def test_an_export_comes_without_the_front_that_cannot_be_written_and_says_so(
    experiment, reported, folder, monkeypatch, caplog, function, missing
):
    def fails(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(nni_gumbel.results.front, function, fails)
    manager, task, output = experiment
    run_export(task, COMMAND, manager, output)
    export = folder / "gumbel-export" / "EXP"
    assert (export / FACTS).is_file() and not (export / missing).exists()
    line = f"{missing} could not be written: RuntimeError: no font"
    assert line in (export / README).read_text() and reported["warning"] == line
    assert "no font" in caplog.text
    assert reported["default"] == pytest.approx(0.895)


def test_an_export_is_complete_where_only_the_trial_code_directory_cannot_be_written(
    experiment, reported, folder
):
    (folder / "gumbel-export").write_text("a file where the folder would be")
    manager, task, output = experiment
    run_export(task, COMMAND, manager, output)
    assert reported["path"] == str(output / "gumbel-export")
    assert "cannot be written" in reported["warning"]
    assert "**Warning:** path:" in (output / "gumbel-export" / README).read_text()
    assert load(output / "gumbel-export") is not None


def test_an_export_never_takes_the_place_of_one_whose_programs_it_lacks(
    experiment, reported, folder, monkeypatch
):
    manager, task, output = experiment
    run_export(task, COMMAND, manager, output)
    own = folder / "gumbel-export" / "EXP"
    before = {path.name for path in own.iterdir()}
    assert "model.py" in before
    monkeypatch.setattr(
        "nni_gumbel.results.portable.write_programs", lambda *_: {"model.py": "the space is gone"}
    )
    records = Records(manager.experiment(), manager.trials(), output.parent, COMMAND)
    with pytest.raises(UsageError, match="has model.py, which could not be written this time"):
        export(records, records.choice, (own,), output)
    assert {path.name for path in own.iterdir()} == before


@pytest.fixture
def asked_for(folder, monkeypatch):
    """Exports a network of an experiment with three, of widths 0, 1, 2, as a person asks for it."""
    # What is asked for, not what is written: programs and pictures have their own tests.
    monkeypatch.setattr("nni_gumbel.results.portable.PROGRAMS", ())
    monkeypatch.setattr("nni_gumbel.results.portable.write_programs", lambda *_: {})
    monkeypatch.setattr(nni_gumbel.results.front, "front_figure", lambda *_: Figure())
    manager, _, output = before_the_export(
        folder,
        {"search_seeds": 3, "train_seeds": 2, "random_baseline": 1},
        lambda seed: {"width": 2 - seed, "activation": "relu"},
        table_latency_ms={0: 1.0, 1: 2.0, 2: 3.0},
    )

    def asked(trials=None, **wish):
        trials = manager.trials() if trials is None else trials
        records = Records(manager.experiment(), trials, output.parent, COMMAND)
        done = export(records, wished(records, Wish(**wish)), (folder / "export",), output)
        text = (folder / "export" / "architecture.json").read_text()
        return json.loads(text)["width"], done.choice

    return asked, manager.trials()


@pytest.mark.parametrize(
    ("wish", "width"),
    [
        ({}, 0),
        ({"network": "network-1"}, 2),
        ({"max_params": 400}, 0),
        ({"max_flops": 400, "max_latency_ms": 1.5}, 0),
    ],
)
def test_an_export_is_of_the_network_that_is_asked_for(asked_for, wish, width):
    assert asked_for[0](**wish)[0] == width


def test_within_limits_the_rule_of_the_experiment_chooses_and_the_reason_names_them(asked_for):
    asked, trials = asked_for
    better = [
        replace(trial, result={**trial.result, "default": 0.99})
        if json.loads(trial.result["architecture"])["width"] == 2 and trial.stage == "train"
        else trial
        for trial in trials
    ]
    assert asked(better)[0] == 2
    width, choice = asked(better, max_params=400)
    assert width == 0 and choice.reason.startswith(
        "Of the networks with at most 400 parameters: network-3 is the best"
    )


def test_a_training_can_be_exported_by_its_trial(asked_for):
    asked, trials = asked_for
    trained = [trial for trial in trials if trial.stage == "train"]
    for trial in trained:
        width, choice = asked(trial=trial.id)
        assert width == json.loads(trial.result["architecture"])["width"]
        assert choice.run.trial_id == trial.id


def test_the_best_so_far_is_exported_of_an_experiment_that_is_not_finished(asked_for):
    asked, trials = asked_for
    first = next(trial for trial in trials if trial.stage == "train")
    pending = [
        trial if trial.stage == "search" or trial is first else replace(trial, state="pending")
        for trial in trials
    ]
    assert asked(pending)[1].run.trial_id == first.id


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        (
            {"max_params": 60},
            "--max-params: no network with at most 60 parameters was trained, the least has 69",
        ),
        (
            {"max_latency_ms": 0.5},
            "--max-latency-ms: no network with at most 0.5 ms was trained, the least has 1 ",
        ),
        ({"network": "network-9"}, "--network: there is no 'network-9'; did you mean network-"),
        ({"trial": "zzz"}, "--trial: 'zzz' is no finished training; there are t"),
        ({"network": "network-1", "max_params": 9}, "--network: it says which .* leave out --max-params"),
        ({"trials": []}, "experiment EXP has no finished training yet"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(asked_for, wish, line):
    with pytest.raises(UsageError, match=line):
        asked_for[0](**wish)


def test_a_random_network_has_the_size_asked_for_and_its_seed_decides_which_it_is(folder, reported):
    from nni_gumbel.pipeline.trial import run_training

    settings = ExperimentSettings.from_flat({"train_epochs": 1}).train_values()
    drawn = []
    for attempt, seed in ((1, 0), (2, 0), *((1, seed) for seed in range(1, 4))):
        task = Task("random", seed, attempt, settings, target_parameters=340)
        output = folder / "trials" / task.key
        output.mkdir(parents=True)
        run_training(task, COMMAND, Manager({}), output)
        architecture = json.loads(reported["architecture"])
        assert architecture["width"] == 1 and reported["parameters"] == SIZES[1]
        assert reported["key"] == task.key and 0 <= reported["default"] <= 1 and 0 <= reported["test"] <= 1
        assert json.loads((output / "bundle" / "architecture.json").read_text()) == architecture
        drawn.append((architecture["activation"], reported["default"]))
    assert drawn[0] == drawn[1]
    assert {activation for activation, _ in drawn} == {"relu", "tanh"}


def search(class_args, folder, command=COMMAND):
    from nni_gumbel.pipeline.trial import run_search

    class_args = {"search_epochs": 1, "batch_size": 10, **class_args}
    (task,) = Plan(ExperimentSettings.from_flat(class_args), [{}]).next_tasks([])
    output = folder / "trials" / task.key
    output.mkdir(parents=True)
    run_search(task, command, Manager(class_args), output)


def test_a_search_reports_its_network_and_the_share_of_each_budget_that_it_uses(folder, reported):
    search({"max_params": 400, "max_flops": 700}, folder)
    found = reported["parameters"], reported["flops"]
    assert found[0] <= 400 and found[1] <= 700
    assert reported["max_params_used"] == pytest.approx(found[0] / 400)
    assert reported["max_flops_used"] == pytest.approx(found[1] / 700)
    assert {"expected_params", "expected_flops"} <= set(reported)


def test_a_search_whose_budget_no_network_can_meet_ends_before_it_begins(folder, reported):
    for budget, least in (({"max_params": 68}, "69"), ({"max_flops": 60}, "max_flops: 60")):
        with pytest.raises(UsageError, match=least):
            search(budget, folder)
    assert not reported


@pytest.mark.parametrize("course", [{"preset": "gradual"}, {"search_epochs": 8, "stages": 1, "finalists": 1}])
def test_a_search_keeps_what_sampled_networks_reach_with_its_weights(folder, reported, course):
    search(course, folder)
    (file,) = (folder / "trials").glob("*/sampled.json")
    networks = Sampled.read(file.parent).networks
    # Of a small space a population of a stage has each network once.
    assert len(networks) == 64 if "preset" in course else 2 <= len(networks) <= 6
    assert {network["width"] for network, _ in networks} <= {0, 1, 2} and len(dict(networks[0][0])) == 2


def test_a_search_finds_the_same_whether_networks_are_sampled_or_not(folder, reported, monkeypatch):
    search({"preset": "gradual"}, folder)
    sampled = dict(reported)
    monkeypatch.setattr("nni_gumbel.pipeline.sampling.SampledNetworks.on_train_batch_start", lambda *_: None)
    search({"preset": "gradual"}, folder / "again")
    for name in ("default", "entropy", "max_probability", "architecture"):
        assert sampled[name] == reported[name]


def test_a_sampled_network_that_cannot_be_judged_ends_no_search(folder, reported, monkeypatch, caplog):
    judge = GumbelSearchModule.losses_of

    def losses_of(module, networks, batch, batch_idx):
        if networks[0]["width"] == 2:
            raise RuntimeError("too wide")
        return judge(module, networks, batch, batch_idx)

    monkeypatch.setattr(GumbelSearchModule, "losses_of", losses_of)
    search({"preset": "gradual"}, folder)
    (file,) = (folder / "trials").glob("*/sampled.json")
    assert {network["width"] for network, _ in Sampled.read(file.parent).networks} == {0, 1}
    assert "default" in reported and "a sampled network is not judged: RuntimeError: too wide" in caplog.text


def test_a_search_prices_a_cost_of_ones_own(folder, reported):
    command = TrialCommand(COMMAND.space, data=COMMAND.data, cost="spaces_of_trials:fewest")
    search({"cost_weight": 100.0, "search_epochs": 8, "arc_learning_rate": 0.5}, folder, command)
    assert json.loads(reported["architecture"])["width"] == 0
    assert reported["chosen_cost"] == 1.0


LATENCY = {"max_latency_ms": 1000.0}


@pytest.mark.slow
def test_the_latency_table_is_measured_by_the_first_search_and_read_by_the_others(
    folder, reported, monkeypatch
):
    from nni_gumbel.complexity import latency

    monkeypatch.setattr(latency, "SECONDS_A_LAYER", 0.0)
    measured = []
    counted = latency._median_ms
    monkeypatch.setattr(latency, "_median_ms", lambda calls: measured.append(len(calls)) or counted(calls))
    search(LATENCY, folder)
    file = folder / "trials" / "latency-table.json"
    table = latency.LatencyTable.load(file)
    # Two layers for each of three widths, two activations.
    assert len(table.milliseconds) == 8 and sum(measured) == 8
    assert 0 < reported["max_latency_ms_used"] == pytest.approx(reported["expected_latency"] / 1000, rel=1)
    search(LATENCY | {"batch_size": 20}, folder)
    assert latency.LatencyTable.load(file) == table and sum(measured) == 8


@pytest.mark.slow
def test_two_searches_with_the_same_table_are_the_same(folder, reported):
    first = folder / "trials" / "first"
    search(LATENCY, folder)
    one = dict(reported)
    for path in (folder / "trials").glob("search-*"):
        path.rename(first)
    search(LATENCY, folder)
    assert one == reported


def test_a_training_reports_its_latency_again_and_by_the_table_where_latency_plays_a_part(folder, reported):
    from nni_gumbel.pipeline.trial import run_training

    class_args = LATENCY | {"train_epochs": 1}
    settings = ExperimentSettings.from_flat(class_args).train_values()
    task = Task("train", 0, 1, settings, {"width": 1, "activation": "relu"})
    output = folder / "trials" / "training"
    output.mkdir(parents=True)
    run_training(task, COMMAND, Manager(class_args), output)
    table = json.loads((folder / "trials" / "latency-table.json").read_text())["milliseconds"]
    layers = [time for layer, time in table.items() if "out_features=5" in layer or "in_features=5" in layer]
    layers += [time for layer, time in table.items() if "ReLU" in layer]
    assert len(layers) == 3
    assert all(" of (1, " in layer for layer in table)  # one example
    assert reported["table_latency_ms"] == pytest.approx(sum(layers))
    assert reported["latency_ms"] > 0
    reported.clear()
    run_training(task, COMMAND, Manager({}), output)
    assert "latency_ms" not in reported


def test_a_latency_that_no_network_reaches_ends_the_search_before_it_begins(folder, reported):
    with pytest.raises(UsageError, match="max_latency_ms: .*smallest"):
        search({"max_latency_ms": 1e-9}, folder)
    assert not reported


def test_parameters_counted_in_this_file_are_those_of_the_space(folder):
    space = SpaceReference.parse(COMMAND.space)
    for width, size in SIZES.items():
        assert count_parameters(space.build().freeze({"width": width, "activation": "relu"})) == size


# -- networks with several inputs, data that does not tell its classes --------------------------------


def train(folder, command, architecture, class_args=None):
    from nni_gumbel.pipeline.trial import run_training

    settings = ExperimentSettings.from_flat({"train_epochs": 1, "batch_size": 8}).train_values()
    task = Task("train", 0, 1, settings, architecture)
    output = folder / "trials" / task.key
    output.mkdir(parents=True)
    run_training(task, command, Manager(class_args or {}), output)
    return output


@pytest.mark.parametrize(("data", "evaluator"), [("flat", "own"), ("pairs", None), ("named", None)])
def test_a_network_with_several_inputs_is_searched_trained_and_given_back(folder, reported, data, evaluator):
    command = TrialCommand(
        "spaces_of_trials:Table",
        data=f"spaces_of_trials:{data}",
        evaluator=evaluator and f"spaces_of_trials:{evaluator}",
    )
    search({"max_flops": 10_000}, folder, command)
    architecture = json.loads(reported["architecture"])
    assert reported["flops"] > 0
    output = train(folder, command, architecture)
    network = load(output / "bundle")
    assert network(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4)).shape == (2, 3)
    assert reported["parameters"] == count_parameters(network)


def test_a_network_of_images_trains_by_channels_last_unless_it_computes_something_else_so(folder, reported):
    for flat in ("flatten", "view", "in_training", "in_place"):
        command = replace(COMMAND, space="spaces_of_trials:Images")
        train(folder / flat, command, {"flat": flat}, {"stability": "none"})
        assert reported["default"] >= 0
    assert sys.modules["spaces_of_trials"].Images.are_contiguous == {
        ("Flatten", False), ("View", True), ("ViewInTraining", True), ("InPlace", True)
    }  # fmt: skip


def test_what_an_evaluator_writes_by_default_goes_into_the_trials_output_directory(folder, reported):
    command = TrialCommand(
        "spaces_of_trials:Table", data="spaces_of_trials:flat", evaluator="spaces_of_trials:by_default"
    )
    before = {path.name for path in folder.iterdir()}
    output = train(folder, command, {"layer": 0})
    assert {path.name for path in folder.iterdir()} - before <= {"trials", "__pycache__"}
    assert list(output.glob("lightning_logs/*/checkpoints/*.ckpt"))


def test_a_step_that_does_not_fit_the_batches_is_told_in_one_line(folder, reported):
    command = TrialCommand(
        "spaces_of_trials:Table", data="spaces_of_trials:named", evaluator="spaces_of_trials:own"
    )
    with pytest.raises(
        UsageError, match="--(evaluator|space): .*fails on (the first batch|inputs of shape)"
    ) as caught:
        search({}, folder, command)
    assert "\n" not in str(caught.value)


def test_the_built_in_evaluator_says_which_batches_it_takes(folder, reported):
    command = TrialCommand("spaces_of_trials:Table", data="spaces_of_trials:flat")
    with pytest.raises(UsageError, match=r"--data: a batch is a list of 3; give \(inputs, labels\)"):
        search({}, folder, command)


def test_a_run_that_was_interrupted_or_ended_with_nan_has_no_result():
    from pytorch_lightning import Trainer
    from pytorch_lightning.trainer.states import TrainerStatus

    from nni_gumbel.pipeline.reporting import validation_metric

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callback_metrics["val_acc"] = torch.tensor(0.5)
    assert validation_metric(trainer, "acc") == 0.5
    trainer.callback_metrics["val_acc"] = torch.tensor(float("nan"))
    with pytest.raises(UsageError, match="metric: val_acc is nan"):
        validation_metric(trainer, "acc")
    trainer.state.status = TrainerStatus.INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        validation_metric(trainer, "acc")
