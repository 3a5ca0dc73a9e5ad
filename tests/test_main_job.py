"""The whole main job on a tiny space, by the real manager: what it leaves behind, and what it never looks at."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import loky
import numpy as np
import pytest
import torch
import yaml
from browser import opened
from nni.nas.nn.pytorch import MutableModule
from real_experiments import SMALL, Experiment, command, free_port, of_stage
from safetensors.torch import load_file

import nni_gumbel
from nni_gumbel.data import build_data
from nni_gumbel.pipeline.records import Records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shuffled_experiment(nni_environment, user_folder):
    """The finished experiment once more, with the labels of the test part shuffled.

    Its first trial starts late, so that NNI gives its parameters to the second one.
    """
    late = 'if [ "$NNI_TRIAL_SEQ_ID" = 0 ]; then sleep 5; fi; '
    command = late + "nni-gumbel trial --space tiny_space:Tiny --data npz:shuffled.npz"
    experiment = Experiment.create(nni_environment, user_folder, free_port(), SMALL, trialCommand=command)
    try:
        experiment.wait_for_status("DONE", 240)
        yield experiment
    finally:
        experiment.stop()


def export_of(experiment, user_folder):
    return user_folder / "gumbel-export" / experiment.id


def intermediate_results(experiment, trial):
    records = experiment.manager._get(f"metric-data/{trial.id}?type=PERIODICAL")
    return [(record["sequence"], json.loads(json.loads(record["data"]))) for record in records]


def test_the_export_lies_where_it_was_started_and_in_the_export_trials_directory(
    finished_experiment, user_folder
):
    export = export_of(finished_experiment, user_folder)
    names = {"architecture.json", "model.safetensors", "bundle.json", "probe.safetensors", "README.md"}
    names |= {"front.csv", "front.png", "model.py", "model.pt2", "model.onnx"}
    assert {path.name for path in export.iterdir()} == names
    (trial,) = of_stage(finished_experiment, "export")
    copy = finished_experiment.output_of(trial) / "gumbel-export"
    assert {path.name for path in copy.iterdir()} == names
    assert trial.result["path"] == str(export)


def printed(nni_environment, folder, *words):
    """What a subcommand prints, started in a folder."""
    run = command(nni_environment, *words, folder=folder, timeout=240)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_best_so_far_of_an_experiment_that_runs_or_was_stopped_is_exported_and_reported_by_commands(
    nni_environment, user_folder, tmp_path
):
    experiment = Experiment.create(nni_environment, user_folder, free_port(), {**SMALL, "train_seeds": 20})
    try:
        experiment.wait_until(lambda e: any(t.report for t in of_stage(e, "train")), 240)
        running = printed(nni_environment, tmp_path, "export", experiment.id)
        live = {trial.id: trial.report for trial in experiment.manager.trials() if trial.report}
    finally:
        experiment.stop()
    assert "is the only network" in running or "network-2" in running
    stopped = printed(nni_environment, tmp_path, "export", experiment.directory, "-o", "stopped")
    assert str(tmp_path / "stopped") in stopped
    page = printed(nni_environment, tmp_path, "report", experiment.directory).splitlines()[-1]
    assert "best so far: the experiment has not ended" in Path(page).read_text()
    names = {"model.safetensors", "model.py", "model.pt2", "model.onnx", "README.md", "front.csv"}
    for folder in (tmp_path / "gumbel-export" / experiment.id, tmp_path / "stopped"):
        assert names <= {path.name for path in folder.iterdir()}
    table = nni_gumbel.results(experiment.directory)
    reported = table[table.state == "succeeded"]
    assert set(live) <= set(reported.index)


def test_another_network_than_the_exported_one_has_a_folder_of_its_own(
    finished_experiment, nni_environment, tmp_path
):
    (drawn, *_) = of_stage(finished_experiment, "random")
    words = ("export", finished_experiment.directory, "--trial", drawn.id)
    text = printed(nni_environment, tmp_path, *words)
    assert f"trial {drawn.id} was asked for" in text
    (folder,) = (tmp_path / "gumbel-export").iterdir()
    assert folder.name == f"{finished_experiment.id}-{drawn.id}"
    source = finished_experiment.output_of(drawn) / "bundle" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == source.read_bytes()


def test_the_files_of_an_experiment_tell_what_its_manager_tells(finished_experiment):
    records = Records.of(finished_experiment.directory)
    assert {t.id: t for t in records.trials} == {t.id: t for t in finished_experiment.manager.trials()}
    assert records.profile["params"] == finished_experiment.manager.experiment()["params"]


def test_the_table_of_results_has_a_row_for_each_trial(finished_experiment, tmp_path):
    shutil.copytree(finished_experiment.directory / "db", tmp_path / "copy" / "db")
    table = nni_gumbel.results(tmp_path / "copy")
    trials = finished_experiment.manager.trials()
    assert list(table.sequence) == sorted(trial.sequence for trial in trials)
    assert set(table.state) == {"succeeded"} and table.seconds.notna().all()
    for trial in trials:
        row = table.loc[trial.id]
        assert (row.stage, row.validation_acc) == (trial.stage, trial.result["default"])
        if trial.stage == "train":
            assert row.network.startswith("network-") and row.test_acc == trial.result["test"]
            assert row.train_epochs == SMALL["train_epochs"]
            assert row["choice/layer"] == trial.parameters["choice/layer"]
        if trial.stage == "search":
            assert row["choice/layer"] == json.loads(trial.result["architecture"])["layer"]


@pytest.mark.parametrize(
    ("predict", "but"),
    [
        ("from model import load; scores = load()(torch.from_numpy(images))", "import torch"),
        ("scores = torch.export.load('model.pt2').module()(torch.from_numpy(images))", "import torch"),
        (
            "session = onnxruntime.InferenceSession('model.onnx')\n"
            "(scores,) = session.run(None, {session.get_inputs()[0].name: images})",
            "import onnxruntime; sys.modules['torch'] = None",
        ),
    ],
    ids=["model.py", "model.pt2", "model.onnx"],
)
def test_without_nni_and_this_package_an_export_reaches_the_reported_test_accuracy(
    finished_experiment, user_folder, tmp_path, predict, but
):
    export = export_of(finished_experiment, user_folder)
    data = build_data(f"npz:{user_folder / 'tiny.npz'}", data_dir=".", batch_size=8, seed=0)
    images, labels = (torch.cat(part).numpy() for part in zip(*data.test_dataloader()))
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    code = (
        "import sys\nfor name in ('nni', 'nni_gumbel', 'safetensors'): sys.modules[name] = None\n"
        f"import numpy; images, labels = numpy.load('{tmp_path / 'test.npz'}').values()\n{but}\n{predict}\n"
        "print((numpy.array(scores.tolist()).argmax(1) == labels).mean())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=export, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    readme = (export / "README.md").read_text()
    (trial,) = [trial for trial in of_stage(finished_experiment, "train") if f"trial {trial.id}" in readme]
    assert float(run.stdout) == pytest.approx(trial.result["test"])


def test_an_export_is_rebuilt_in_eval_mode_without_any_choice(finished_experiment, user_folder, monkeypatch):
    monkeypatch.chdir(user_folder)
    export = export_of(finished_experiment, user_folder)
    network = nni_gumbel.load(export)
    probe = load_file(export / "probe.safetensors")
    assert not network.training
    assert not any(isinstance(module, MutableModule) for module in network.children())
    with torch.no_grad():
        assert torch.allclose(network(probe["input.0"]), probe["output"], atol=1e-6)


def test_the_readme_of_an_export_tells_accuracy_cost_and_how_to_load_it(finished_experiment, user_folder):
    text = (export_of(finished_experiment, user_folder) / "README.md").read_text()
    assert "held-out part of npz:tiny.npz" in text and "parameters" in text and "FLOPs" in text
    assert f'nni_gumbel.load("{export_of(finished_experiment, user_folder)}")' in text


def test_shuffled_test_labels_leave_searches_networks_and_choice_bit_identical(
    finished_experiment, shuffled_experiment, user_folder
):
    def seen(experiment):
        results = {}
        for trial in experiment.manager.trials():
            result = {
                name: value for name, value in trial.result.items() if "test" not in name and name != "path"
            }
            results[result["key"]] = result
        return results

    assert seen(finished_experiment) == seen(shuffled_experiment)
    first, second = (export_of(e, user_folder) for e in (finished_experiment, shuffled_experiment))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "architecture.json").read_bytes() == (second / "architecture.json").read_bytes()
    # The labels really were others.
    tests = [
        [trial.result["test"] for trial in of_stage(e, "train")]
        for e in (finished_experiment, shuffled_experiment)
    ]
    assert sorted(tests[0]) != sorted(tests[1])


def test_a_trial_runs_what_the_portal_shows_although_nni_swaps_parameters(shuffled_experiment):
    swapped = 0
    records = {record["trialJobId"]: record for record in shuffled_experiment.manager._get("trial-jobs")}
    for trial in shuffled_experiment.manager.trials():
        shown = json.loads(records[trial.id]["hyperParameters"][0])["parameter_id"]
        received = json.loads(records[trial.id]["finalMetricData"][0]["parameterId"])
        swapped += shown != received
        assert trial.result["key"] == trial.parameters["key"]
    assert swapped >= 2
    for trial in of_stage(shuffled_experiment, "train"):
        bundle = shuffled_experiment.output_of(trial) / "bundle"
        choices = json.loads((bundle / "architecture.json").read_text())
        assert json.loads((bundle / "bundle.json").read_text())["seed"] == trial.parameters["seed"]
        assert all(trial.parameters[f"choice/{label}"] == value for label, value in choices.items())


def test_the_exported_weights_are_those_of_the_run_that_the_readme_names(finished_experiment, user_folder):
    export = export_of(finished_experiment, user_folder)
    text = (export / "README.md").read_text()
    (trial,) = [t for t in of_stage(finished_experiment, "train") if f"trial {t.id}" in text]
    source = finished_experiment.output_of(trial) / "bundle" / "model.safetensors"
    assert (export / "model.safetensors").read_bytes() == source.read_bytes()


def test_each_epoch_is_an_intermediate_result_without_a_gap(finished_experiment):
    for stage, epochs in (("search", SMALL["search_epochs"]), ("train", SMALL["train_epochs"])):
        for trial in of_stage(finished_experiment, stage):
            results = intermediate_results(finished_experiment, trial)
            # A missing number makes the portal show a blank page.
            assert [sequence for sequence, _ in results] == list(range(epochs))


def test_intermediate_results_of_a_search_tell_the_state_of_the_structure(finished_experiment):
    results = intermediate_results(finished_experiment, of_stage(finished_experiment, "search")[0])
    names = {"default", "train_loss", "temperature", "entropy", "expected_params", "max_probability"}
    names |= {"chosen_probability"}
    assert all(set(numbers) == names for _, numbers in results)
    assert results[-1][1]["temperature"] == pytest.approx(0.4)


def test_the_export_compares_each_network_found_with_random_ones_of_its_size(
    finished_experiment, user_folder
):
    with open(export_of(finished_experiment, user_folder) / "front.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    drawn = of_stage(finished_experiment, "random")
    sizes = {trial.parameters["target_parameters"]: trial.result["parameters"] for trial in drawn}
    assert sizes and all(abs(drawn - target) <= 0.05 * target for target, drawn in sizes.items())
    random = [row for row in rows.values() if row["kind"] == "random"]
    assert {row["of_network"] for row in random} == {n for n, row in rows.items() if row["kind"] == "found"}
    for row in random:
        target = int(rows[row["of_network"]]["parameters"])
        assert int(row["parameters"]) == sizes[target]
    text = (export_of(finished_experiment, user_folder) / "README.md").read_text()
    assert "network-1 and one random network of equal size" in text and "](front.png)" in text


def test_a_training_shows_the_choices_of_its_network_and_every_trial_its_stage_and_seed(finished_experiment):
    for trial in finished_experiment.manager.trials():
        assert {"stage", "seed", "attempt", "key"} <= set(trial.parameters)
    for trial in of_stage(finished_experiment, "train"):
        assert {"choice/layer", "choice/activation", "choice/skip"} <= set(trial.parameters)


def test_a_trial_takes_its_share_of_the_cores(finished_experiment):
    cores = loky.cpu_count()
    for trial in of_stage(finished_experiment, "search"):
        # NNI sends what a trial prints to its log.
        said = (finished_experiment.output_of(trial) / "trial.log").read_text()
        assert f"threads: {max(1, cores // 2)}" in said


def test_tensorboard_has_the_curves_of_a_search(finished_experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trial = of_stage(finished_experiment, "search")[0]
    # Where the portal's button looks, whatever the trial's own output directory is.
    linked = finished_experiment.directory / "trials" / trial.id / "output" / "tensorboard"
    events = EventAccumulator(str(linked))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"temperature", "entropy", "expected_params", "val_acc", "train_loss"} <= tags
    assert {"probability/layer/0", "probability/layer/1", "probability/activation/relu"} <= tags
    assert len(events.Scalars("probability/layer/0")) == SMALL["search_epochs"]


def test_wait_prints_the_table_and_ends_with_0(finished_experiment, nni_environment):
    program = Path(sys.executable).parent / "nni-gumbel"
    run = subprocess.run(
        [program, "wait", finished_experiment.id],
        env=nni_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    for words in (
        "network-1",
        "parameters",
        "stability",
        "one random network",
        "gumbel-export",
        "report.html",
        f"nnictl stop {finished_experiment.id}",
    ):
        assert words in run.stdout


def test_the_report_of_the_main_job_opens_without_a_message(finished_experiment, user_folder):
    page = user_folder / "gumbel-report" / finished_experiment.id / "report.html"
    with opened(page) as (shown, said, _):
        assert said == [] and shown.locator(".warning").count() == 0
        names = {name.removesuffix(".svg") for name in os.listdir(page.parent) if name.endswith(".svg")}
        of_searches = {"probabilities", "search", "agreement", "importance"}
        assert names == {"network", "front", "stability", "neighbours"} | of_searches
        assert shown.locator("figure").count() == len(names)


def test_the_report_is_written_again_by_its_command(finished_experiment, nni_environment, tmp_path):
    text = printed(nni_environment, tmp_path, "report", finished_experiment.directory, "-o", "again")
    # The space prints, too.
    assert text.splitlines()[-1] == str(tmp_path / "again" / "report.html")
    assert "(exported)" in (tmp_path / "again" / "report.html").read_text()


def test_nnis_own_export_lists_the_trials(finished_experiment, nni_environment, tmp_path):
    program, target = Path(sys.executable).parent / "nnictl", tmp_path / "trials.json"
    command = [
        program,
        "experiment",
        "export",
        finished_experiment.id,
        "--filename",
        target,
        "--type",
        "json",
    ]
    subprocess.run(list(map(str, command)), env=nni_environment, check=True, capture_output=True)
    listed = json.loads(target.read_text())
    assert len(listed) == len(finished_experiment.manager.trials())


def test_the_regression_example_minimises_its_metric(nni_environment, tmp_path):
    shutil.copy(ROOT / "examples" / "regression.py", tmp_path)
    config = yaml.safe_load((ROOT / "examples" / "regression.yml").read_text())
    settings = config["tuner"]["classArgs"] | {"search_epochs": 3, "train_epochs": 3, "train_seeds": 2}
    experiment = Experiment.create(
        nni_environment,
        tmp_path,
        free_port(),
        settings,
        trialCommand=config["trialCommand"],
        searchSpace={"cost_weight": {"_type": "choice", "_value": [0.0, 1.0]}},
    )
    try:
        experiment.wait_for_status("DONE", 300)
        (export,) = of_stage(experiment, "export")
        means = {}
        for trial in of_stage(experiment, "train"):
            network = json.dumps({k: v for k, v in trial.parameters.items() if k.startswith("choice/")})
            means.setdefault(network, []).append(trial.result["default"])
        best = min(sum(values) / len(values) for values in means.values())
        worst = max(sum(values) / len(values) for values in means.values())
        assert best <= export.result["default"] <= worst
    finally:
        experiment.stop()
