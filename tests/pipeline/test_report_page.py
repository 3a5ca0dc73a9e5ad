"""The report of an experiment, from the export trial and by `nni-gumbel report`, without NNI's manager."""

import csv
import shutil

import pytest
from browser import opened
from test_trial import COMMAND, SIZES, before_the_export

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.compare import write_comparison
from nni_gumbel.pipeline.export import run_export
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.report import write_report
from nni_gumbel.results.agreement import Sampled
from nni_gumbel.results.neighbours import Neighbours
from nni_gumbel.results.stability import Stability, curve_of

SETTINGS = {"search_seeds": 3, "train_seeds": 2, "random_baseline": 2}
FILES = {
    "report.html", "experiment.yml",
    *(
        f"{name}.{kind}"
        for name in ("network", "front", "agreement", "importance", "neighbours", "stability")
        for kind in ("png", "svg")
    ),
    *(f"{name}.csv" for name in (
        "choices", "networks", "decision", "choices_of_networks", "stability", "searches", "probabilities",
        "search_curves", "agreement", "importance", "neighbours", "settings", "all_settings", "trials",
    )),
}  # fmt: skip


@pytest.fixture
def before(folder):
    """An experiment before its export, whose searches agree on the activation and not on the width."""
    manager, task, output = before_the_export(
        folder, SETTINGS, lambda seed: {"width": seed % 3, "activation": "relu"}
    )
    for trial in manager.trials():
        if trial.stage in ("train", "random"):
            curve = curve_of("input noise", "share", (0.0, 1.0), (0.9, 0.5 + 0.01 * trial.sequence))
            kept = Stability(
                metric="acc", minimize=False, chance=0.5, examples=4, curves=(curve,),
                predictions=(0, 1, 1, trial.sequence % 2),
            )  # fmt: skip
            place = folder / "trials" / trial.id
            place.mkdir(exist_ok=True)
            (place / "stability.json").write_text(kept.model_dump_json())
    return manager, task, output


def report_of(manager, folder, command=COMMAND, trials=None):
    trials = manager.trials() if trials is None else trials
    return write_report(Records(manager.experiment(), trials, folder / "trials", command), folder / "out")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_export_writes_a_report_that_opens_without_a_message_also_from_a_copied_folder(
    before, folder, reported, caplog
):  # fmt: skip
    manager, task, output = before
    run_export(task, COMMAND, manager, output)
    report = folder / "gumbel-report" / "EXP"
    # No search of this test has written events for a picture of its own.
    assert {path.name for path in report.iterdir()} == FILES
    assert (report / "report.html").stat().st_size < 5_000_000
    copied = shutil.copytree(report, folder / "elsewhere")
    with opened(copied / "report.html") as (page, said, asked):
        assert said == [] and asked == [(copied / "report.html").as_uri()]
        assert page.locator("svg").count() == 6 and page.locator(".warning").count() == 0
        text = page.inner_text("body")
    assert f"{reported['network']} (exported)" in text
    assert "examples of the test part the index of the exported network is" in text
    assert "could not be" not in caplog.text


def test_a_report_can_be_had_before_the_export_and_says_so(before, folder):
    manager, *_ = before
    text = report_of(manager, folder).read_text()
    assert "best so far: the experiment has not ended" in text
    assert "nni-gumbel export EXP --network network-1" in text


def test_a_report_says_per_label_whether_the_data_determine_it(before, folder):
    manager, *_ = before
    rows = {row["label"]: row for row in rows_of(report_of(manager, folder).parent / "agreement.csv")}
    assert rows["width"]["agreement"] == "0.0" and rows["width"]["verdict"].startswith("arbitrary")
    assert rows["activation"]["agreement"] == "1.0" and rows["activation"]["candidates"] == "2"
    assert rows["width"]["chosen by the searches"] == "0 ×1, 1 ×1, 2 ×1"


def test_a_report_says_how_much_each_choice_explains_over_trained_and_over_sampled_networks(before, folder):
    manager, *_ = before
    sampled = [({"width": n % 3, "activation": ("relu", "tanh")[n % 2]}, float(n % 3)) for n in range(12)]
    for trial in manager.trials():
        if trial.stage == "search":
            place = folder / "trials" / trial.id
            place.mkdir()
            Sampled(networks=sampled).write(place)
    rows = {row["label"]: row for row in rows_of(report_of(manager, folder).parent / "importance.csv")}
    kind = "36 networks sampled from the supernet"
    assert rows["width"][kind] == "1.0" and float(rows["activation"][kind]) < 0.1
    assert [name for name in rows["width"] if "trained" in name] != []


def test_a_report_tells_what_the_neighbours_reach_with_the_weights_that_are_exported(
    before, folder, reported
):
    manager, task, output = before
    run_export(task, COMMAND, manager, output)
    rows = rows_of(folder / "gumbel-report" / "EXP" / "neighbours.csv")
    assert [(row["label"], row["choice"]) for row in rows][-1] == ("activation", "tanh")
    # A layer of another width would need other weights.
    assert [bool(row["validation acc"]) for row in rows] == [False, False, True]
    assert "2 more need weights" in (folder / "gumbel-report" / "EXP" / "report.html").read_text()


@pytest.mark.slow
def test_with_full_stability_every_neighbour_is_trained(folder, reported):
    settings = {"train_seeds": 1, "stability": "full", "train_epochs": 1}
    manager, task, output = before_the_export(folder, settings)
    run_export(task, COMMAND, manager, output)
    found = Neighbours.read(output)
    assert found.retrained and [each.label for each in found.found] == ["width", "width", "activation"]
    assert all(0 <= each.value <= 1 for each in found.found)
    assert [each.parameters for each in found.found] == [SIZES[0], SIZES[2], SIZES[1]]
    rows = rows_of(folder / "gumbel-report" / "EXP" / "neighbours.csv")
    assert [float(row["validation acc"]) for row in rows] == [each.value for each in found.found]


def test_experiments_are_compared_on_one_page_that_opens_without_a_message(before, folder):
    manager, *_ = before
    other = type(manager)({**SETTINGS, "choice_rule": "best"}, manager.trials())
    found = [
        Records(each.experiment() | {"id": name}, each.trials(), folder / "trials", COMMAND)
        for name, each in (("ONE", manager), ("TWO", other))
    ]
    page = write_comparison(found, folder / "compared")
    assert rows_of(page.parent / "settings.csv") == [
        {"setting": "choice_rule", "ONE": "cheapest-stable", "TWO": "best"}
    ]
    assert [row["experiment"] for row in rows_of(page.parent / "networks.csv")] == ["ONE"] * 3 + ["TWO"] * 3
    assert [row["trials"] for row in rows_of(page.parent / "time.csv")] == ["15 succeeded"] * 2
    with opened(page) as (shown, said, asked):
        assert said == [] and asked == [page.as_uri()]
        assert shown.locator("svg").count() == 1 and shown.locator(".warning").count() == 0


def test_a_report_has_every_training_and_every_curve_as_tables(before, folder):
    manager, *_ = before
    place = report_of(manager, folder).parent
    trained = [trial for trial in manager.trials() if trial.stage in ("train", "random")]
    assert {row["trial"] for row in rows_of(place / "networks.csv")} == {trial.id for trial in trained}
    assert all(row["stability"] for row in rows_of(place / "networks.csv"))
    assert {row["disturbance"] for row in rows_of(place / "stability.csv")} == {"input noise"}
    assert [row["network"] for row in rows_of(place / "decision.csv")] == [
        "network-1",
        "network-2",
        "network-3",
    ]
    assert len(rows_of(place / "trials.csv")) == len(manager.trials())


def test_a_report_of_a_space_that_is_gone_comes_without_the_picture_of_the_network(before, folder, caplog):
    manager, *_ = before
    command = type(COMMAND)("gone:Space", data=COMMAND.data)
    page = report_of(manager, folder, command)
    assert "could not be drawn" in page.read_text() and not (page.parent / "network.png").exists()
    assert "those that searches have found" in caplog.text and "Traceback" not in caplog.text


def test_an_experiment_without_a_finished_training_has_no_report_yet(before, folder):
    manager, *_ = before
    searches = [trial for trial in manager.trials() if trial.stage == "search"]
    with pytest.raises(UsageError, match="no finished training yet"):
        report_of(manager, folder, trials=searches)
