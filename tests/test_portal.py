"""What a person sees in NNI's real portal, in a real browser."""

import json
import re

import pytest
from browser import chromium
from real_experiments import of_stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def errors():
    """What the portal's own code throws."""
    return []


@pytest.fixture
def page(browser, finished_experiment, errors):
    """The portal's page of trials."""
    page = browser.new_page(viewport={"width": 1500, "height": 1200})
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(f"http://127.0.0.1:{finished_experiment.port}/detail")
    page.wait_for_selector(".ms-DetailsRow", timeout=30_000)
    yield page
    page.close()


def row_of(page, trial):
    """The row of a trial in the portal's list."""
    return page.locator(".ms-DetailsRow", has_text=trial.id)


def test_every_trial_is_listed_with_its_final_metric(page, finished_experiment):
    for trial in finished_experiment.manager.trials():
        text = row_of(page, trial).inner_text()
        assert "SUCCEEDED" in text
        shown = float(re.search(r"([\d.]+) \(FINAL\)", text).group(1))
        assert shown == pytest.approx(trial.result["default"], abs=1e-6)


def test_a_trials_parameters_are_those_that_it_really_ran_with(page, finished_experiment):
    trial = of_stage(finished_experiment, "train")[0]
    row_of(page, trial).locator("[data-automation-key=_expand] i").click()
    shown = page.locator(".ms-DetailsList").inner_text()
    wrote = json.loads((finished_experiment.output_of(trial) / "task.json").read_text())
    for name, value in wrote.items():
        # The portal folds a list and shows its entries one a line.
        text = f"{name}:\n0:{value[0]}" if isinstance(value, list) else f"{name}:{json.dumps(value)}"
        assert text in shown


def test_the_hyper_parameter_plot_has_an_axis_for_each_choice(page):
    page.click("text=Hyper-parameter")
    page.wait_for_selector(".parcoords .dimension", timeout=10_000)
    axes = page.locator(".parcoords").inner_text()
    assert all(name in axes for name in ("choice/layer", "choice/activation", "choice/skip", "seed"))


def test_intermediate_results_are_drawn(page, errors):
    page.click("text=Intermediate result")
    page.wait_for_selector("text=# Intermediate result")
    assert not errors


def test_the_tensorboard_button_shows_the_selected_trials(page, finished_experiment):
    trials = [*of_stage(finished_experiment, "search"), of_stage(finished_experiment, "train")[0]]
    for trial in trials:
        row_of(page, trial).locator("label.ms-Checkbox-label").click()
    page.click("button:has-text('TensorBoard')")
    with page.context.expect_page() as opened:
        page.click("button:has-text('Ok')", timeout=30_000)
    tensorboard = opened.value
    # TensorBoard takes a few seconds to answer after NNI has opened its page.
    for name in ("entropy", "temperature", "probability"):
        tensorboard.wait_for_selector(f"text={name}", timeout=60_000)
    text = tensorboard.inner_text("body")
    assert all(trial.id in text for trial in trials)
