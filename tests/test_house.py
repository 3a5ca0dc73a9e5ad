"""The house is in order: rooms, style, lazy imports."""

import subprocess
import sys
from pathlib import Path

import pytest

import nni_gumbel

ROOT = Path(__file__).parent.parent


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_modules_import_only_from_their_own_room_and_from_rooms_below():
    result = run(
        sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("command", [("check", "."), ("format", "--check", ".")])
def test_the_style_is_ruffs(command):
    result = run(sys.executable, "-m", "ruff", *command)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_public_names_are_what_people_call_and_the_error_that_they_catch():
    assert set(nni_gumbel.__all__) == {
        "__version__", "GumbelSearch", "relax", "Distribution", "load", "results", "assert_supernet_equals_frozen",
        "UsageError", "private_portal",
    }  # fmt: skip


def test_every_public_name_can_be_imported():
    assert all(getattr(nni_gumbel, name) is not None for name in nni_gumbel.__all__)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["nni_gumbel", "nni_gumbel.cli", "nni_gumbel.pipeline.tuner", "nni_gumbel.pipeline.launch"]
)
def test_what_must_start_quickly_imports_no_torch(module):
    program = f"import sys, {module}; sys.exit(bool({{'torch', 'pytorch_lightning'}} & set(sys.modules)))"
    assert run(sys.executable, "-W", "ignore", "-c", program).returncode == 0
