"""Settings and fixtures for all tests."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Helpers of the tests are importable by their file name, the example spaces by their folder.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from real_experiments import SMALL, Experiment, fill_folder, free_port, new_environment

# What fails once fails always, for whoever runs it.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# The tests' networks are tiny: more threads than one only wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Fast tests first: a mistake shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Under CI a skipped test is a failure, unless it needs a GPU: what it lacks must be installed there."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers each time: what fails once fails always."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def nni_environment(tmp_path_factory):
    """Environment variables of an NNI of its own, in which the tuner is registered."""
    return new_environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory):
    """A user's folder, from which experiments start."""
    folder = tmp_path_factory.mktemp("code")
    fill_folder(folder)
    return folder


@pytest.fixture(scope="session")
def finished_experiment(nni_environment, user_folder):
    """A tiny experiment that has run to its end; its portal is up."""
    experiment = Experiment.create(nni_environment, user_folder, free_port(), SMALL)
    try:
        experiment.wait_for_status("DONE", 240)
        yield experiment
    finally:
        experiment.stop()
