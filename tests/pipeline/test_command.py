"""The trial command is understood inside NNI's shell line, and checked without an import."""

import pytest

from nni_gumbel.errors import UsageError
from nni_gumbel.pipeline.command import TrialCommand

FULL = TrialCommand(
    "spaces.mnist:Space",
    ("width=16", "deep=true"),
    "npz:my file.npz",
    "/data",
    "tasks:evaluator",
    "tasks:cost",
    ("csv", "wandb"),
)


@pytest.mark.parametrize(
    "text",
    [
        "nni-gumbel trial --space spaces.mnist:Space",
        "python -m nni_gumbel.cli trial --space spaces.mnist:Space",
        "/opt/venv/bin/nni-gumbel trial --space spaces.mnist:Space",
        "OMP_NUM_THREADS=1 nice nni-gumbel trial --space spaces.mnist:Space && echo done",
        "source setup.sh; nni-gumbel trial --space=spaces.mnist:Space; echo nni-gumbel",
        "nni-gumbel trial --space spaces.mnist:Space > log.txt",
        "(nni-gumbel trial --space spaces.mnist:Space) | tee log.txt",
    ],
)
def test_the_command_is_found_in_a_shell_line(text):
    assert TrialCommand.from_trial_command(text) == TrialCommand("spaces.mnist:Space", data="mnist5k")


def test_every_word_of_the_command_is_read():
    text = (
        "nni-gumbel trial --space spaces.mnist:Space width=16 deep=true --data 'npz:my file.npz' "
        "--data-dir /data --evaluator tasks:evaluator --cost tasks:cost --logger csv wandb"
    )
    assert TrialCommand.from_trial_command(text) == FULL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "python train.py",
            ["trialCommand:", "python train.py", "does not run `nni-gumbel trial`", "--space"],
        ),
        ("nni-gumbel wait", ["trialCommand:", "does not run"]),
        ("nni-gumbel trial 'a", ["trialCommand:", "quotation"]),
        ("nni-gumbel trial", ["--space"]),
        ("nni-gumbel trial --space", ["--space", "expected"]),
        ("nni-gumbel trial --space mnist", ["--space:", "'mnist'", "module:"]),
        ("nni-gumbel trial --space a:B width", ["--space:", "'width'", "key=value"]),
        ("nni-gumbel trial --space a:B --dat mnist", ["--dat", "the form is"]),
        ("nni-gumbel trial --space a:B --data mnits", ["--data:", "'mnits'", "mnist"]),
        ("nni-gumbel trial --space a:B --evaluator evaluator", ["--evaluator:", "'evaluator'"]),
        ("nni-gumbel trial --space a:B --cost flops", ["--cost:", "'flops'", "module:name"]),
    ],
)
def test_a_wrong_command_is_one_line_with_field_value_and_remedy(text, words):
    with pytest.raises(UsageError) as caught:
        TrialCommand.from_trial_command(text)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


@pytest.fixture
def code_directory(tmp_path):
    """A user's folder; importing anything in it is an error."""
    sources = {
        "spaces/__init__.py": "",
        "spaces/mnist.py": "raise RuntimeError('imported')\nclass Space: pass\n",
        "plain_folder/inner.py": "class Space: pass\n",
        "tasks.py": "from elsewhere import evaluator, other as renamed\nmade = alias = print\n"
        "try:\n    import fast\nexcept ImportError:\n    def fallback(): pass\n"
        "if True:\n    class Inner: pass\ndef outer():\n    class Hidden: pass\n",
        "everything.py": "from elsewhere import *\n",
        "broken.py": "class Space:\n  def f(:\n",
    }
    for path, source in sources.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(source)
    return tmp_path


@pytest.mark.parametrize(
    "reference",
    [
        "spaces.mnist:Space",
        "plain_folder.inner:Space",
        "tasks:evaluator",
        "tasks:renamed",
        "tasks:alias",
        "tasks:fallback",
        "tasks:Inner",
        "everything:Space",
        "nni_gumbel.errors:UsageError",
        "math:sin",
    ],
)
def test_what_a_trial_would_find_is_found(code_directory, reference):
    TrialCommand(reference, evaluator=reference, data=reference, cost=reference).check(code_directory)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("missing:Space", ["there is no module 'missing'", "missing.py"]),
        ("spaces.cifar:Space", ["there is no module 'spaces.cifar'", "spaces/cifar.py"]),
        ("spaces.mnist.deep:Space", ["there is no module"]),
        ("spaces.mnist:Spcae", ["has no 'Spcae'", "did you mean Space?"]),
        ("tasks:Hidden", ["has no 'Hidden'"]),
        ("spaces:Space", ["has no 'Space'"]),
        ("broken:Space", ["broken.py, line 2", "is not Python"]),
    ],
)
@pytest.mark.parametrize("field", ["space", "data", "evaluator", "cost"])
def test_what_is_not_there_is_told_with_its_field(code_directory, field, reference, words):
    command = TrialCommand(**{"space": "spaces.mnist:Space", field: reference})
    with pytest.raises(UsageError) as caught:
        command.check(code_directory)
    assert all(word in str(caught.value) for word in [f"--{field}:", *words]), str(caught.value)


def test_data_in_files_is_left_to_the_trial(code_directory):
    TrialCommand("spaces.mnist:Space", data="npz:there/on/the/worker.npz").check(code_directory)
