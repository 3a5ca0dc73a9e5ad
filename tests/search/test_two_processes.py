"""A search on two processes (`ddp`): each draws its own samples, both hold the same logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_experiments import free_port

TESTS = Path(__file__).parent.parent

PROGRAM = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import pytorch_lightning as pl
import torch
torch.set_num_threads(1)
from small_searches import Nested, evaluator, regression, search

folder = sys.argv[1]

class Draws(pl.Callback):
    seen = []
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(module.distribution.joint_sample.weights("outer").tolist())

def run(name, make=evaluator, resume_from=None, seed=0, **settings):
    Draws.seen = []
    saving = pl.callbacks.ModelCheckpoint(folder + "/" + name, filename="{epoch}", save_top_k=-1)
    given = make(
        max_epochs=2, strategy="ddp", devices=2, callbacks=[saving, Draws()], enable_checkpointing=True,
        accumulate_grad_batches=2,
    )
    given.fit_kwargs["ckpt_path"] = resume_from
    module = search(given, Nested, seed=seed, **settings)
    weights = {n: v.tolist() for n, v in module.training_module.named_parameters()}
    result = {
        "logits": [l.tolist() for l in module.distribution.logits.values()], "weights": weights,
        "network": module.export(), "draws": Draws.seen,
    }
    with open(f"{folder}/{name}-{module.trainer.global_rank}.json", "w") as file:
        json.dump(result, file)

run("soft", warmup_epochs=1)
run("path", estimator="straight-through-gumbel")
run("resumed", estimator="straight-through-gumbel", resume_from=folder + "/path/epoch=0.ckpt", seed=7)
run("course", preset="none")
run("metric", estimator="straight-through-gumbel", make=regression)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes ended with, per search: (first, second)."""
    folder = tmp_path_factory.mktemp("ddp")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"MASTER_PORT": str(free_port()), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = {file.name.rsplit("-", 1)[0] for file in folder.glob("*-0.json")}
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)] for name in names
    }


SEARCHES = ["soft", "path", "metric"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEARCHES, "course"])
def test_both_processes_end_with_the_same_logits_weights_and_network(results, name):
    first, second = results[name]
    for key in ("logits", "weights", "network"):
        assert first[key] == second[key]
    assert any(value != 0 for logits in first["logits"] for value in logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_each_process_draws_its_own_samples(results, name):
    first, second = results[name]
    assert len(first["draws"]) == len(second["draws"]) > 0 and first["draws"] != second["draws"]


@pytest.mark.slow
def test_a_resumed_search_is_the_search_that_was_never_stopped(results):
    for whole, resumed in zip(results["path"], results["resumed"]):
        assert whole["logits"] == resumed["logits"] and whole["weights"] == resumed["weights"]
