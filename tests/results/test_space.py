"""A space is named, parsed and built, and what is wrong with it is one line."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_gumbel.errors import UsageError
from nni_gumbel.results.space import SpaceReference, sample_of

SPACE = """
import nni
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableAvgPool2d, MutableDropout

class {prefix}Space(ModelSpace):
    def __init__(self, width: int = 2, name: str = "a"):
        super().__init__()
        if width < 1:
            raise ValueError("width must be positive")
        self.layer = LayerChoice([torch.nn.Linear(width, 2), torch.nn.Identity()], label="layer")

class NothingToChoose(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

class Tuples(ModelSpace):
    def __init__(self):
        super().__init__()
        self.pool = MutableAvgPool2d(nni.choice("kernel", [(1, 3), (3, 1)]))
        self.drop = MutableDropout(nni.choice("rate", [0.0, 0.5]))

class Classes(ModelSpace):
    def __init__(self):
        super().__init__()
        self.drop = MutableDropout(nni.choice("rate", [0.5, object()]))

class NoSpace:
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with spaces in the working directory, under a name that no other test uses."""
    name = f"spaces_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SPACE.format(prefix="My"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def refused(reference, *arguments):
    with pytest.raises(UsageError) as caught:
        SpaceReference.parse(reference, arguments).build()
    message = str(caught.value)
    assert message.startswith("--space: ") and "\n" not in message
    return message


def test_arguments_are_read_as_what_they_look_like():
    words = ["width=16", "rate=1e-3", "norm=true", "skip=False", "name=a=b", "size=inf", "empty="]
    parsed = SpaceReference.parse("package.my_module:MySpace", words)
    assert parsed.arguments == {
        "width": 16, "rate": 1e-3, "norm": True, "skip": False, "name": "a=b", "size": "inf", "empty": "",
    }  # fmt: skip
    assert str(parsed) == "package.my_module:MySpace"


@pytest.mark.slow
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers() | st.floats(-1e9, 1e9) | st.booleans()
    )
)
def test_numbers_survive_the_trial_command(arguments):
    words = [f"{key}={value}" for key, value in arguments.items()]
    assert SpaceReference.parse("m:S", words).arguments == arguments


@pytest.mark.parametrize(
    "reference", ["MySpace", "my_module:", ":MySpace", "a b:C", "m:S:T", "../m:S", "m.py:S-1"]
)
def test_a_reference_of_another_form_is_refused(reference):
    assert repr(reference) in refused(reference)


@pytest.mark.parametrize(
    ("words", "named"), [(["width"], "'width'"), (["a=1", "a=2"], "twice"), (["1=2"], "'1=2'")]
)
def test_an_argument_of_another_form_is_refused(words, named):
    assert named in refused("m:S", *words)


def test_a_space_is_built_from_the_working_directory_with_its_arguments(module):
    space = SpaceReference.parse(f"{module}:MySpace", ["width=3"]).build()
    assert list(space.simplify()) == ["layer"]
    assert space.layer[0].in_features == 3


def test_a_missing_module_is_named(module):
    assert "no module 'absent.spaces'" in refused("absent.spaces:MySpace")


def test_a_missing_class_is_answered_with_those_that_exist(module):
    message = refused(f"{module}:YourSpace")
    assert "'YourSpace'" in message and "MySpace" in message


@pytest.mark.parametrize("name", ["NoSpace", "torch"])
def test_what_is_no_model_space_is_refused(module, name):
    assert "ModelSpace" in refused(f"{module}:{name}")


def test_a_wrong_argument_is_answered_with_the_constructor(module):
    message = refused(f"{module}:MySpace", "depth=3")
    assert "depth" in message and "width: int = 2" in message


def test_what_a_constructor_raises_is_one_line(module):
    assert "width must be positive" in refused(f"{module}:MySpace", "width=0")


def test_a_space_without_a_choice_is_refused(module):
    assert "nothing to choose" in refused(f"{module}:NothingToChoose")


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, module):
    (tmp_path / "broken_spaces.py").write_text("import absent_package\n")
    assert "absent_package" in refused("broken_spaces:MySpace")


def test_naming_a_space_imports_no_torch():
    code = (
        "import sys; from nni_gumbel.results.space import SpaceReference as S; S.parse('m:S', ['a=1']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_sample_survives_its_way_through_json(module):
    space = SpaceReference.parse(f"{module}:Tuples").build()
    read = json.loads(json.dumps({"kernel": (3, 1), "rate": 0}))  # JavaScript writes 0.0 as 0
    sample = sample_of(space, read)
    assert sample == {"kernel": (3, 1), "rate": 0.0} and isinstance(sample["rate"], float)
    assert space.freeze(sample).pool.kernel_size == (3, 1)


def test_candidates_that_json_cannot_hold_are_refused(module):
    assert "choice 'rate'" in refused(f"{module}:Classes")
