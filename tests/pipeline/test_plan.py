"""Which trial comes next: whole experiments are played, with trials that fail, die and swap their parameters."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.plan import Plan, finished
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.pipeline.task import Task, Trial, judged

SETTINGS = ExperimentSettings.from_flat({"search_seeds": 2, "train_seeds": 2})
NOTHING_VARIED = [{}]
PLAN = Plan(SETTINGS, NOTHING_VARIED)
FOREIGN = [
    None,
    {},
    {"lr": 0.1},
    {"stage": "search", "seed": 0, "attempt": 1, "key": "search-1-seed0-attempt1"},
    [1],
]


def result_of(task, architecture=None):
    """The final metric of a trial that does the task."""
    result = {"default": 0.9, "key": task.key, "parameters": 100, "flops": 1000}
    if task.stage == "search":
        result["architecture"] = json.dumps(architecture or {"layer": "conv", "input": [0]})
    if task.stage == "random":
        result["architecture"] = json.dumps({"layer": f"drawn{task.seed}"})
    if task.stage in ("train", "random"):
        result |= {"test": 0.8, "validation_size": 50, "test_size": 50}
    return result


def trial_of(task, state, trial_id="a", architecture=None):
    result = result_of(task, architecture) if state == "succeeded" else None
    return Trial(trial_id, 0, state, through_javascript(task.parameters()), result, 0.0, 1.0)


def through_javascript(value):
    """A way through NNI's manager: JavaScript has one kind of number."""
    if isinstance(value, dict):
        return {key: through_javascript(each) for key, each in value.items()}
    if isinstance(value, list):
        return [through_javascript(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def play(settings, combinations, rng, *, failing=0.0, slots=2, networks_found=3, crashing=0.0, swapping=0.0):
    """Run an experiment to its end; returns its trials in the order in which they were started.

    A slot that ends is filled at once, as long as a task may start. `crashing` is how likely a stop
    and resume is after each trial: running trials go on under the same id.
    """
    trials, running = [], []
    while True:
        for task in Plan(settings, combinations).next_tasks(trials)[: slots - len(running)]:
            trials.append(trial_of(task, "pending", f"t{len(trials)}"))
            running.append(len(trials) - 1)
        missing = Plan(settings, combinations).next_tasks(trials)
        assert len(running) == slots or not missing, "a slot is empty although there is work"
        if not running:
            return trials
        index = running.pop(rng.randrange(len(running)))
        task = Task.from_parameters(trials[index].parameters)
        end = float(len(trials))
        if rng.random() < failing:
            trials[index] = replace(trials[index], state="failed", end=end)
        else:
            other = rng.choice(running) if running and rng.random() < swapping else None
            if other is not None:  # the two ran each other's parameters
                swapped = Task.from_parameters(trials[other].parameters)
                trials[other] = replace(
                    trials[other], state="succeeded", result=found_by(task, networks_found), end=end
                )
                running.remove(other)
                task = swapped
            trials[index] = replace(
                trials[index], state="succeeded", result=found_by(task, networks_found), end=end
            )
        if rng.random() < crashing:
            # The manager's list starts anew in another order; what was queued but not started is lost.
            order = rng.sample(range(len(trials)), len(trials))
            trials = [trials[each] for each in order]
            running = [order.index(each) for each in running]


def found_by(task, networks_found):
    number = int(task.identity.split("-")[1], 16) + task.seed if task.stage == "search" else 0
    size = {"parameters": 100 + number % networks_found} if task.stage == "search" else {}
    return result_of(task, {"layer": number % networks_found, "input": [0, 1]}) | size


SPACES = st.sampled_from(
    [
        [{}],
        [{"learning_rate": 0.01}, {"learning_rate": 0.1}],
        [{"train_epochs": 1}, {"train_epochs": 2}],
        [{"temperature_start": 3.0}, {"temperature_start": 4.0, "train_epochs": 3}],
    ]
)


@pytest.mark.slow
@hypothesis_settings(max_examples=40, deadline=None)
@given(
    combinations=SPACES,
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)),
    seed=st.integers(0, 10**6),
    failing=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    slots=st.integers(1, 4),
    crashing=st.sampled_from([0.0, 0.3]),
    swapping=st.sampled_from([0.0, 0.3]),
)
def test_no_task_is_done_twice_and_the_export_comes_last_and_once(
    combinations, counts, seed, failing, slots, crashing, swapping
):
    search_seeds, train_seeds, attempts, random_baseline = counts
    settings = ExperimentSettings.from_flat(
        {
            "search_seeds": search_seeds,
            "train_seeds": train_seeds,
            "attempts": attempts,
            "random_baseline": random_baseline,
            "seed": 5,
        }
    )
    trials = play(
        settings, combinations, random.Random(seed),
        failing=failing, slots=slots, crashing=crashing, swapping=swapping,
    )  # fmt: skip
    done = [trial.result["key"] for trial in trials if trial.state == "succeeded"]
    identities = [key.rsplit("-attempt", 1)[0] for key in done]
    assert len(set(identities)) == len(identities)
    started = [trial.parameters["key"] for trial in trials]
    assert len(set(started)) == len(started)
    if not swapping:  # a task whose parameters went to another trial is handed out once more
        # The export may need its attempts, too: they are not part of the count.
        assert (
            len([key for key in started if key[:6] != "export"])
            <= (Plan(settings, combinations).trial_count - 1) * attempts
        )
    exports = [trial for trial in trials if trial.parameters["stage"] == "export"]
    if finished(trials):
        assert Plan(settings, combinations).failure(trials) is None
        assert len([trial for trial in exports if trial.state == "succeeded"]) == 1
        assert all(trial.end <= exports[0].end for trial in trials if trial not in exports)
        assert Plan(settings, combinations).networks(trials)
    else:
        assert Plan(settings, combinations).failure(trials)
        assert len(exports) in (0, attempts)
    if not failing:
        assert finished(trials)
        assert {key.rsplit("-attempt", 1)[1] for key in done} == {"1"} or swapping
        assert {len(network.baseline) for network in Plan(settings, combinations).networks(trials)} == {
            random_baseline
        }


def test_searches_come_first_and_their_seeds_count_up():
    tasks = Plan(SETTINGS.with_values({"seed": 7}), [{}, {"batch_size": 8}]).next_tasks([])
    assert [(task.stage, task.seed, task.attempt) for task in tasks] == [
        ("search", 7, 1),
        ("search", 8, 1),
    ] * 2
    assert [task.settings["batch_size"] for task in tasks] == [64, 64, 8, 8]


def test_a_network_is_trained_as_soon_as_its_own_search_has_ended():
    first, second = PLAN.next_tasks([])
    trials = [trial_of(first, "pending"), trial_of(second, "succeeded", architecture={"layer": "pool"})]
    tasks = PLAN.next_tasks(trials)
    assert [(task.stage, task.seed, task.architecture) for task in tasks] == [
        ("train", 0, {"layer": "pool"}),
        ("train", 1, {"layer": "pool"}),
    ]


def test_a_network_found_twice_is_trained_once():
    trials = [trial_of(task, "succeeded") for task in PLAN.next_tasks([])]
    assert len(PLAN.next_tasks(trials)) == SETTINGS.train_seeds


def test_combinations_that_differ_in_the_training_alone_share_their_search():
    combinations = [{"train_epochs": 1}, {"train_epochs": 2}]
    searches = Plan(SETTINGS, combinations).next_tasks([])
    assert len(searches) == SETTINGS.search_seeds
    trainings = Plan(SETTINGS, combinations).next_tasks([trial_of(task, "succeeded") for task in searches])
    assert [task.settings["train_epochs"] for task in trainings] == [1, 1, 2, 2]


def test_a_failed_task_is_tried_once_more_and_then_left_out():
    first, second = PLAN.next_tasks([])
    trials = [trial_of(first, "failed", "x"), trial_of(second, "pending")]
    (again,) = PLAN.next_tasks(trials)
    assert (again.identity, again.attempt) == (first.identity, 2)
    trials.append(trial_of(again, "failed", "y"))
    assert PLAN.next_tasks(trials) == []
    assert PLAN.failure(trials) is None  # the second search goes on


def test_the_failure_of_everything_is_told_in_one_line():
    once = SETTINGS.with_values({"attempts": 1, "search_seeds": 1, "train_seeds": 1})
    (search,) = Plan(once, NOTHING_VARIED).next_tasks([])
    trials = [trial_of(search, "failed", "SRCH")]
    found = Plan(once, NOTHING_VARIED).failure(trials)
    assert "every search failed" in found.line and found.last_trial == "SRCH"
    trials = [trial_of(search, "succeeded")]
    (training,) = Plan(once, NOTHING_VARIED).next_tasks(trials)
    found = Plan(once, NOTHING_VARIED).failure([*trials, trial_of(training, "failed", "TRN")])
    assert "every training failed" in found.line and found.last_trial == "TRN"
    trials.append(trial_of(training, "succeeded"))
    (export,) = Plan(once, NOTHING_VARIED).next_tasks(trials)
    assert export.stage == "export"
    found = Plan(once, NOTHING_VARIED).failure([*trials, trial_of(export, "failed", "EXP")])
    assert "the export failed" in found.line and found.last_trial == "EXP"


@pytest.mark.parametrize("parameters", FOREIGN)
def test_trials_started_by_hand_are_ignored(parameters):
    by_hand = [
        Trial("h", 9, state, parameters, {"default": 1.0}, 0.0, 1.0)
        for state in ("pending", "failed", "succeeded")
    ]
    assert PLAN.next_tasks(by_hand) == PLAN.next_tasks([])


@pytest.mark.parametrize(
    "broken",
    [
        {"key": None},
        {"key": "search-seed0"},
        {"architecture": "{"},
        {"architecture": "{}"},
        {"architecture": {"layer": 1}},
        {"parameters": None},
        {"flops": -1},
        {"default": float("nan")},
    ],
)
def test_a_success_without_a_sound_result_is_a_failure(broken):
    first, second = PLAN.next_tasks([])
    trial = trial_of(first, "succeeded")
    trials = [replace(trial, result=trial.result | broken), trial_of(second, "pending")]
    assert [task.attempt for task in PLAN.next_tasks(trials)] == [2]


def test_states_follow_from_what_nni_shows():
    sound, nan = {"default": 0.5}, {"default": float("nan")}
    assert judged("SUCCEEDED", sound, 0, 1000) == "succeeded"
    assert judged("SUCCEEDED", nan, 0, 1000) == "failed"
    assert judged("SUCCEEDED", {"default": "0.5"}, 0, 1000) == "failed"
    assert judged("SUCCEEDED", None, 990, 1000) == "pending"
    assert judged("SUCCEEDED", None, 900, 1000) == "failed"
    for status in ("WAITING", "RUNNING", "ADD_RESUMED", "UNKNOWN"):
        assert judged(status, None, None, 1000) == "pending"
    for status in ("FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"):
        assert judged(status, sound, 0, 1000) == "failed"


def test_networks_have_their_runs_by_seed_and_names_by_search():
    tasks = PLAN.next_tasks([])
    trials = [trial_of(task, "succeeded", architecture={"layer": task.seed}) for task in tasks]
    trainings = PLAN.next_tasks(trials)
    trials += [trial_of(task, "succeeded", f"n{index}") for index, task in enumerate(trainings)]
    for order in (trials, trials[::-1]):
        one, two = PLAN.networks(order)
        assert (one.name, one.architecture, two.name) == ("network-1", {"layer": 0}, "network-2")
        assert [(run.trial_id, run.seed, run.test) for run in two.runs] == [("n2", 0, 0.8), ("n3", 1, 0.8)]
        assert (one.parameters, one.flops, one.validation_size) == (100, 1000, 50)
        assert one.settings == SETTINGS.train_values()


WITH_BASELINE = SETTINGS.with_values({"random_baseline": 2, "search_seeds": 1})
BASELINE_PLAN = Plan(WITH_BASELINE, NOTHING_VARIED)


def trained(settings, size=100):
    """The trials of an experiment whose search and trainings are done: what comes next is the baseline."""
    (search,) = Plan(settings, NOTHING_VARIED).next_tasks([])
    done = trial_of(search, "succeeded")
    trials = [replace(done, result=done.result | {"parameters": size})]
    return trials + [
        trial_of(task, "succeeded") for task in Plan(settings, NOTHING_VARIED).next_tasks(trials)
    ]


def test_random_networks_of_its_size_follow_the_trainings_of_a_network_each_with_a_seed_that_no_training_has():
    tasks = BASELINE_PLAN.next_tasks(trained(WITH_BASELINE, 123))
    assert [(task.stage, task.seed, task.target_parameters) for task in tasks] == [
        ("random", 2, 123),
        ("random", 3, 123),
    ]
    assert all(task.settings == WITH_BASELINE.train_values() and not task.architecture for task in tasks)


def test_a_network_gets_a_baseline_once_it_could_be_trained_and_after_what_is_left_to_train():
    search, first, second = trained(WITH_BASELINE)
    waiting = [search, first]
    stages = [task.stage for task in BASELINE_PLAN.next_tasks(waiting)]
    assert stages == ["train", "random", "random"]
    assert [task.stage for task in BASELINE_PLAN.next_tasks([search])] == ["train"] * 2


def test_networks_of_equal_size_share_their_baseline():
    settings = WITH_BASELINE.with_values({"search_seeds": 2})
    searches = Plan(settings, NOTHING_VARIED).next_tasks([])
    trials = [trial_of(task, "succeeded", architecture={"layer": task.seed}) for task in searches]
    trials += [trial_of(task, "succeeded") for task in Plan(settings, NOTHING_VARIED).next_tasks(trials)]
    tasks = Plan(settings, NOTHING_VARIED).next_tasks(trials)
    assert [(task.stage, task.seed) for task in tasks] == [("random", 2), ("random", 3)]
    trials += [trial_of(task, "succeeded", f"r{task.seed}") for task in tasks]
    one, two = Plan(settings, NOTHING_VARIED).networks(trials)
    assert [each.runs[0].trial_id for each in one.baseline] == ["r2", "r3"]
    assert [each.runs for each in one.baseline] == [each.runs for each in two.baseline]
    assert [each.name for each in two.baseline] == ["network-2-random-1", "network-2-random-2"]


def test_the_export_comes_although_every_random_network_failed():
    trials = trained(WITH_BASELINE)
    for _ in range(WITH_BASELINE.attempts):
        tasks = BASELINE_PLAN.next_tasks(trials)
        assert [task.stage for task in tasks] == ["random", "random"]
        trials += [trial_of(task, "failed", f"r{task.attempt}") for task in tasks]
    assert BASELINE_PLAN.failure(trials) is None
    assert [task.stage for task in BASELINE_PLAN.next_tasks(trials)] == ["export"]
    (network,) = BASELINE_PLAN.networks(trials)
    assert network.baseline == ()


def test_without_a_training_that_succeeded_the_baseline_does_not_delay_the_failure():
    once = WITH_BASELINE.with_values({"attempts": 1})
    search = trained(once)[0]
    trainings = [
        trial_of(task, "failed", "TRN", None) for task in Plan(once, NOTHING_VARIED).next_tasks([search])
    ]
    assert "every training failed" in Plan(once, NOTHING_VARIED).failure([search, *trainings]).line


def test_a_network_knows_the_combinations_whose_searches_found_it():
    combinations = [{"cost_weight": 0.1}, {"cost_weight": 0.2}, {"cost_weight": 0.3}]
    searches = Plan(WITH_BASELINE, combinations).next_tasks([])
    trials = [
        trial_of(task, "succeeded", architecture={"layer": int(task.settings["cost_weight"] < 0.25)})
        for task in searches
    ]
    trials += [trial_of(task, "succeeded") for task in Plan(WITH_BASELINE, combinations).next_tasks(trials)]
    found = {
        network.name: network.found_with for network in Plan(WITH_BASELINE, combinations).networks(trials)
    }
    assert found == {
        "network-1": ({"cost_weight": 0.1}, {"cost_weight": 0.2}),
        "network-2": ({"cost_weight": 0.3},),
    }


def test_a_network_has_its_pruned_counts_and_the_median_of_its_latencies():
    search, *trainings = trained(SETTINGS.with_values({"search_seeds": 1, "train_seeds": 3}))
    trials = [search] + [
        replace(
            trial,
            result=trial.result
            | {"pruned_parameters": 90, "pruned_flops": 900, "latency_ms": value, "table_latency_ms": 2.0},
        )
        for trial, value in zip(trainings, (1.0, 9.0, 2.0))
    ]
    settings = SETTINGS.with_values({"search_seeds": 1, "train_seeds": 3})
    (network,) = Plan(settings, NOTHING_VARIED).networks(trials)
    assert (network.pruned_parameters, network.pruned_flops) == (90, 900)
    assert (network.latency_ms, network.table_latency_ms) == (2.0, 2.0)


@pytest.mark.parametrize("broken", [{"pruned_parameters": -1}, {"pruned_flops": 1.5}, {"latency_ms": "fast"}])
def test_a_training_with_an_unsound_count_or_latency_has_not_been_done(broken):
    search, first, second = trained(SETTINGS.with_values({"search_seeds": 1}))
    trials = [search, replace(first, result=first.result | broken), second]
    (again,) = Plan(SETTINGS.with_values({"search_seeds": 1}), NOTHING_VARIED).next_tasks(trials)
    assert (again.stage, again.attempt) == ("train", 2)


def all_tasks():
    searches = PLAN.next_tasks([])
    trials = [trial_of(task, "succeeded") for task in searches]
    trainings = PLAN.next_tasks(trials)
    trials += [trial_of(task, "succeeded") for task in trainings]
    baseline = BASELINE_PLAN.next_tasks(trained(WITH_BASELINE))
    return [*searches, *trainings, *baseline, *PLAN.next_tasks(trials)]


@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: task.key)
def test_parameters_bring_a_task_through_nni_and_back(task):
    parameters = through_javascript(json.loads(json.dumps(task.parameters())))
    back = Task.from_parameters(parameters)
    assert back == task and back.key == task.key == parameters["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "serach"},
        {"seed": -1},
        {"seed": "0"},
        {"attempt": 0},
        {"attempt": True},
        {"key": "search-00000000-seed0-attempt1"},
        {"learning_rate": 0.5},
        {"learning_rate": -0.5},
        {"metric": 3},
        {"module": "os:system"},
        {"choice/layer": "conv"},
        {"target_parameters": 100},
    ],
)
def test_parameters_that_are_not_a_tasks_are_refused(change):
    task = PLAN.next_tasks([])[0]
    with pytest.raises(UsageError):
        Task.from_parameters(task.parameters() | change)
    task = Plan(SETTINGS, [{"batch_size": 8}]).next_tasks([])[0]
    with pytest.raises(UsageError):
        Task.from_parameters(
            {name: value for name, value in task.parameters().items() if name != "batch_size"}
        )


def test_the_number_of_trials_that_is_asked_for_is_that_of_the_guide():
    assert Plan(ExperimentSettings(), NOTHING_VARIED).trial_count == 1 * 1 * (1 + 3) + 1
    assert Plan(SETTINGS, [{}, {"batch_size": 8}]).trial_count == 2 * 2 * (1 + 2) + 1
    assert Plan(WITH_BASELINE, [{}, {"batch_size": 8}]).trial_count == 2 * 1 * (1 + 2 + 2) + 1


def play_in_turn(plan, limit, ends):
    """Run one trial after the other until none may start; `ends` are the states of the first ones."""
    trials, ends = [], iter(ends)
    while tasks := plan.next_tasks(trials, limit):
        trials.append(trial_of(tasks[0], next(ends, "succeeded"), f"t{len(trials)}"))
    return trials


@pytest.mark.parametrize("failed", [0, 1, 2, 3])
def test_the_last_trial_that_a_limit_allows_is_an_export_of_what_there_is(failed):
    plan = Plan(SETTINGS.with_values({"attempts": 5, "search_seeds": 1}), NOTHING_VARIED)
    trials = play_in_turn(plan, plan.trial_count, ["failed"] * failed)
    exported = failed < 2  # of 4 trials one is a search and one the export
    assert (finished(trials) is not None) is exported
    assert (plan.failure(trials, plan.trial_count) is None) is exported


def test_when_time_is_over_nothing_is_begun_but_an_export():
    plan = Plan(SETTINGS.with_values({"search_seeds": 1}), NOTHING_VARIED)
    (search,) = plan.next_tasks([])
    trials = [trial_of(search, "succeeded")]
    first, second = plan.next_tasks(trials)
    assert plan.next_tasks([*trials, trial_of(first, "pending", "b")], 0) == []
    (export,) = plan.next_tasks([*trials, trial_of(first, "succeeded", "b")], 0)
    assert export.stage == "export" and second.stage == "train"


def test_a_mistake_is_not_tried_again():
    plan = Plan(SETTINGS.with_values({"search_seeds": 1, "attempts": 3}), NOTHING_VARIED)
    (search,) = plan.next_tasks([])
    mistaken = replace(trial_of(search, "failed"), result={"key": search.key, "mistake": "--space: no"})
    assert plan.next_tasks([mistaken]) == []
    assert (
        plan.failure([mistaken]).line == "every search failed, so there is no network to train (attempts: 1)"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"log_prob_every_n_step": 3}, {"optimize_mode": "minimize"}, {"cost": "flops"}, {"prior": "cost"},
        {"preset": "gradual"}, {"trainer": {"enable_progress_bar": True}},
    ],
)  # fmt: skip
def test_what_changes_no_result_makes_no_other_task(values):
    plain = ExperimentSettings.from_flat(
        ExperimentSettings.from_flat({"preset": "gradual"}).flat() | {"preset": "none"}
    )
    one, other = (Plan(each, NOTHING_VARIED).next_tasks([])[0] for each in (plain, plain.with_values(values)))
    assert one.identity == other.identity


@pytest.mark.parametrize(
    "values",
    [
        {"cost": "flops", "cost_weight": 1.0}, {"kl_weight": 1.0}, {"metric": "loss"}, {"optimizer": "sgd"},
        {"precision": "bf16-mixed"}, {"trainer": {"accumulate_grad_batches": 2, "profiler": "simple"}},
    ],
)  # fmt: skip
def test_what_changes_a_result_makes_another_task(values):
    one, other = (
        Plan(each, NOTHING_VARIED).next_tasks([])[0] for each in (SETTINGS, SETTINGS.with_values(values))
    )
    assert one.identity != other.identity


def test_a_task_of_a_version_that_lacked_a_setting_is_known_again():
    task = PLAN.next_tasks([])[0]
    older = {name: value for name, value in task.parameters().items() if name != "capacity_exponent"}
    assert Task.from_parameters(older).identity == task.identity


@pytest.mark.parametrize("size", [None, "100", -1, 1.5, 101])
def test_a_random_network_without_the_size_that_its_key_was_made_for_is_refused(size):
    task = BASELINE_PLAN.next_tasks(trained(WITH_BASELINE))[0]
    with pytest.raises(UsageError):
        Task.from_parameters(task.parameters() | {"target_parameters": size})
