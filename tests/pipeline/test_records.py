"""What is read of an experiment from the files that NNI keeps, without NNI's manager."""

import json
import sqlite3

import pytest

import nni_gumbel
from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.compare import compare
from nni_gumbel.pipeline.export import export_of
from nni_gumbel.pipeline.plan import Plan
from nni_gumbel.pipeline.records import Records
from nni_gumbel.pipeline.report import report
from nni_gumbel.pipeline.settings import ExperimentSettings


@pytest.fixture
def database(tmp_path):
    """The database of an experiment that has just begun, with NNI's tables as far as they are read."""
    (tmp_path / "db").mkdir()
    params = {
        "tuner": {"name": "GumbelSearch", "classArgs": {}},
        "searchSpace": {},
        "trainingService": {"trialCommand": "nni-gumbel trial --space my_space:MySpace"},
    }
    database = sqlite3.connect(tmp_path / "db" / "nni.sqlite", isolation_level=None)
    database.executescript(
        "create table ExperimentProfile (params, id, execDuration, startTime, endTime, revision);"
        "create table TrialJobEvent (timestamp, trialJobId, event, data, sequenceId);"
        "create table MetricData (trialJobId, type, data);"
    )
    database.execute("insert into ExperimentProfile values (?, 'EXP', 0, 0, null, 0)", [json.dumps(params)])
    yield database
    database.close()


def test_the_table_of_an_experiment_that_has_just_begun_is_empty_and_has_its_columns(database, tmp_path):
    table = nni_gumbel.results(tmp_path)
    assert len(table) == 0 and {"sequence", "stage", "state", "network", "seconds"} <= set(table.columns)


def test_the_mistake_of_a_failed_trial_is_read(database, tmp_path):
    (first, *_) = Plan(ExperimentSettings.from_flat({}), [{}]).next_tasks([])
    given = json.dumps({"parameter_id": 0, "parameters": first.parameters()})
    for event, data in (("WAITING", given), ("RUNNING", None), ("FAILED", None)):
        database.execute("insert into TrialJobEvent values (1000, 'abcde', ?, ?, 0)", (event, data))
    told = json.dumps(json.dumps({"key": first.key, "mistake": "--space: correct it"}))
    database.execute("insert into MetricData values ('abcde', 'FINAL', ?)", [told])
    (trial,) = Records.of(tmp_path).trials
    assert (trial.state, trial.mistake) == ("failed", "--space: correct it")
    assert nni_gumbel.results(tmp_path).loc["abcde"].mistake == "--space: correct it"


def test_an_id_that_is_also_a_folder_here_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("nni_gumbel.pipeline.manager._listed", lambda: {"known": {"startTime": 0}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EXP").mkdir()
    with pytest.raises(UsageError, match="ID: there is no experiment 'EXP'; the newest are known"):
        Records.of("EXP")
    with pytest.raises(UsageError, match="holds no db"):
        Records.of(tmp_path / "EXP")


def test_an_experiment_is_not_compared_with_itself(database, tmp_path):
    for experiments in ([tmp_path], [tmp_path, tmp_path]):
        with pytest.raises(UsageError, match="are not several experiments"):
            compare(experiments)


@pytest.mark.parametrize("write", [export_of, report])
def test_before_the_first_training_nothing_is_written_and_the_line_says_how_to_follow(
    database, tmp_path, write
):
    with pytest.raises(UsageError, match="no finished training yet; `nni-gumbel wait EXP` follows it"):
        write(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
