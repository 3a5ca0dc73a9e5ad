"""Every instrument runs from the command line, prints a table, writes a CSV and a picture, and goes on where it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import table

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table of made-up accuracies, and random images in the place of CIFAR-10."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [f"{table.arch_of(cell)},80,{random.uniform(50, 94.37):.2f}" for cell in np.ndindex(table.SHAPE)]
    (folder / "table.csv").write_text("\n".join(["arch,c10_valid_12ep,c10_test_200ep", *rows]))
    pixels = random.integers(256, size=(800, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(800) % 10
    np.savez(folder / "images.npz", x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    return ["--table", folder / "table.csv"], ["--images", folder / "images.npz"]


def run(script, folder, *options):
    """The output of ``--quick``."""
    command = [sys.executable, BENCHMARKS / script, "--quick", "--workers", "1", "--folder", folder, *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended


def assert_complete(script, folder, name, options):
    first = run(script, folder, *options)
    assert (folder / f"{name}.png").stat().st_size > 0
    assert "Python" in first.stdout and "seed" in first.stdout
    again = run(script, folder, *options)
    assert " of " in first.stderr and f"{name}.csv: " not in again.stderr
    return first.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("proxy", []), ("supernet", ["--ways", "fair", "single", "--no-affine"]), ("structure", [])],
)
def test_an_instrument_on_nasbench201_runs_and_resumes(name, options, files, tmp_path):
    given = [*files[0], *([] if name == "structure" else files[1]), *options]
    assert_complete(f"nasbench201/{name}.py", tmp_path, f"nasbench201-{name}-quick", given)


@pytest.mark.slow
def test_what_supernets_say_biases_the_structure(files, tmp_path):
    run("nasbench201/supernet.py", tmp_path, *files[0], *files[1], "--ways", "gumbel:0.5")
    recorded = tmp_path / "nasbench201-supernet-quick.csv"
    options = ["--bias", recorded, "--shares", "0.5", "--noise", "0", "--strategies", "default"]
    printed = run("nasbench201/structure.py", tmp_path, *files[0], *options).stdout
    assert "0.5 x gumbel:0.5" in printed


@pytest.mark.slow
def test_searches_of_every_kind_run_and_resume(files, tmp_path):
    names = ["default:cost_weight=0", "GumbelDARTS", "RandomOneShot", "Random"]
    printed = assert_complete(
        "nasbench201/search.py",
        tmp_path,
        "nasbench201-search-quick",
        [*files[0], *files[1], "--strategies", *names],
    )
    assert "cannot run" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("collapse", ["--spaces", "deep"]),
        ("mnist_networks", ["--strategies", "default"]),
        ("activations", []),
    ],
)
def test_a_judge_beside_nasbench201_runs(name, options, tmp_path):
    run(f"{name}.py", tmp_path, *options)
    assert (tmp_path / f"{name}.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["proxy", "supernet", "structure", "search"])
def test_a_missing_table_is_told_in_one_line(name, tmp_path):
    images = [] if name == "structure" else ["--images", "missing"]
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / "nasbench201" / f"{name}.py", "--table", "missing.csv", *images],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("--table: missing.csv does not exist; give a CSV")
