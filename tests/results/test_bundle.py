"""A bundle gives back the network that was written, or one line that says why not."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn

from nni_gumbel.errors import UsageError
from nni_gumbel.results.bundle import copy_bundle, load, write_bundle
from nni_gumbel.results.example import Example
from nni_gumbel.results.space import SpaceReference


class Pair(nn.Module):
    """A candidate with a choice of its own."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = LayerChoice([nn.ReLU(), nn.Linear(width, width), nn.Tanh()], label="inner")

    def forward(self, x):
        return self.second(self.first(x))


class NestedSpace(ModelSpace):
    def __init__(self, width: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.outer = LayerChoice({"pair": Pair(width), "skip": nn.Identity()}, label="outer")
        self.inputs = InputChoice(2, n_chosen=1, label="inputs")
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        stem = self.stem(x)
        return self.head(self.inputs([stem, self.outer(stem)]))


class WiderSpace(NestedSpace):
    def __init__(self, width: int = 4):
        super().__init__(width)
        self.head = nn.Linear(width, 3)


class OtherLabels(NestedSpace):
    def __init__(self, width: int = 4):
        super().__init__(width)
        self.outer = LayerChoice({"pair": Pair(width), "skip": nn.Identity()}, label="other")


class OtherActivation(NestedSpace):
    def forward(self, x):
        # Not relu: where no output is negative it changes nothing.
        return super().forward(x).sigmoid()


REFERENCE = SpaceReference(__name__, "NestedSpace", {"width": 6})
NESTED = {"outer": "pair", "inner": 1, "inputs": [1]}
SKIP = {"outer": "skip", "inputs": [1]}


def trained(architecture, reference=REFERENCE):
    """A frozen network whose weights and statistics are not those of a fresh one."""
    network = reference.build().freeze(architecture)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.train()(torch.randn(16, 3))
    return network


def written(directory, architecture=NESTED, reference=REFERENCE):
    network = trained(architecture, reference)
    write_bundle(
        directory,
        network,
        architecture,
        reference,
        Example((torch.randn(5, 3),)),
        {"metric": "acc", "seed": 1},
    )
    return network


@pytest.fixture
def bundle(tmp_path):
    written(tmp_path / "bundle")
    return tmp_path / "bundle"


def refusal(path, space=None):
    with pytest.raises(UsageError) as caught:
        load(path, space)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([NESTED, SKIP, NESTED | {"inner": 0}, SKIP | {"inputs": [0]}]),
    st.integers(1, 8),
    st.integers(1, 9),
)
def test_a_loaded_network_computes_what_the_written_one_did(tmp_path_factory, architecture, width, batch):
    directory = tmp_path_factory.mktemp("bundles") / "bundle"
    network = written(directory, architecture, SpaceReference(__name__, "NestedSpace", {"width": width}))
    loaded, x = load(directory), torch.randn(batch, 3)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), network.eval()(x), rtol=0, atol=0)


def test_a_loaded_network_has_no_choice_left(bundle):
    loaded = load(bundle)
    assert not loaded.simplify()
    assert not [module for module in loaded.modules() if isinstance(module, (LayerChoice, InputChoice))]


def test_architecture_holds_only_the_labels_that_are_used(tmp_path):
    written(tmp_path / "bundle", SKIP)
    assert json.loads((tmp_path / "bundle" / "architecture.json").read_text()) == SKIP
    load(tmp_path / "bundle")


@pytest.mark.parametrize("space", [NestedSpace, NestedSpace(6)], ids=["class", "instance"])
def test_the_space_can_be_given(bundle, space):
    x = torch.randn(4, 3)
    torch.testing.assert_close(load(bundle, space)(x), load(bundle)(x), rtol=0, atol=0)


def test_a_given_instance_is_left_as_it_is(bundle):
    space = NestedSpace(6)
    before = {key: value.clone() for key, value in space.state_dict().items()}
    load(bundle, space)
    assert all(torch.equal(value, before[key]) for key, value in space.state_dict().items())


def test_writing_leaves_the_network_as_it_is(tmp_path):
    network = trained(NESTED).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    write_bundle(tmp_path / "bundle", network, NESTED, REFERENCE, Example((torch.randn(5, 3),)), {})
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_tied_weights_are_written(tmp_path):
    network = trained(SKIP)
    network.stem[0].bias = network.stem[1].bias
    write_bundle(tmp_path / "bundle", network, SKIP, REFERENCE, Example((torch.randn(5, 3),)), {})
    x = torch.randn(4, 3)
    torch.testing.assert_close(load(tmp_path / "bundle")(x), network.eval()(x))


def test_facts_and_versions_are_kept(bundle):
    facts = json.loads((bundle / "bundle.json").read_text())
    assert facts["space"] == f"{__name__}:NestedSpace" and facts["arguments"] == {"width": 6}
    assert facts["metric"] == "acc" and facts["versions"]["torch"]


def test_an_older_bundle_is_replaced_and_nothing_is_left_beside_it(bundle):
    (bundle / "README.md").write_text("of the older one")
    written(bundle, SKIP)
    assert json.loads((bundle / "architecture.json").read_text()) == SKIP
    assert not (bundle / "README.md").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_of_writers_of_one_folder_at_once_each_writes_it_whole_and_none_fails(bundle, tmp_path):
    export = tmp_path / "exports" / "export"

    def write(number):
        copy_bundle(bundle, export, str(number))
        return number

    with ThreadPoolExecutor(8) as writers:
        assert list(writers.map(write, range(100))) == list(range(100))
    load(export)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_a_write_that_fails_leaves_the_older_bundle(bundle):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(TypeError):
        write_bundle(
            bundle, trained(NESTED), NESTED, REFERENCE, Example((torch.randn(5, 3),)), {"seed": object()}
        )
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path, bundle):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no bundle"):
        copy_bundle(bundle, tmp_path / "precious", "")
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, bundle):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        copy_bundle(bundle, tmp_path / "file" / "export", "")


def test_a_copy_loads_and_has_the_readme(tmp_path, bundle):
    copy_bundle(bundle, tmp_path / "exports" / "abc", "# Network\n")
    assert (tmp_path / "exports" / "abc" / "README.md").read_text() == "# Network\n"
    x = torch.randn(4, 3)
    torch.testing.assert_close(load(tmp_path / "exports" / "abc")(x), load(bundle)(x), rtol=0, atol=0)


def test_copying_choosing_and_reporting_import_no_torch(tmp_path, bundle):
    code = (
        "import sys; from nni_gumbel.results import choice, report; from nni_gumbel.results.bundle import copy_bundle;"
        f"copy_bundle({str(bundle)!r}, {str(tmp_path / 'copy')!r}, ''); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "name", ["architecture.json", "model.safetensors", "bundle.json", "probe.safetensors"]
)
def test_a_missing_file_is_named(bundle, tmp_path, name):
    (bundle / name).unlink()
    assert name in refusal(bundle)
    with pytest.raises(UsageError, match=name):
        copy_bundle(bundle, tmp_path / "copy", "")


@pytest.mark.parametrize(
    "name", ["architecture.json", "model.safetensors", "bundle.json", "probe.safetensors"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\x00\xff" * 9])
def test_a_damaged_file_is_one_line(bundle, name, content):
    (bundle / name).write_bytes(content)
    refusal(bundle)


def test_a_wrong_path_is_one_line(tmp_path):
    assert "no folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("space", [WiderSpace, OtherLabels, OtherActivation, NestedSpace(5)])
def test_a_changed_space_is_one_line(bundle, space):
    assert "is not the space" in refusal(bundle, space)


@pytest.mark.parametrize(
    ("space", "named"),
    [("absent_module:Space", "absent_module"), (f"{__name__}:Absent", "Absent"), ("os:path", "os:path")],
)
def test_a_missing_class_is_one_line(bundle, space, named):
    facts = json.loads((bundle / "bundle.json").read_text()) | {"space": space}
    (bundle / "bundle.json").write_text(json.dumps(facts))
    assert named in refusal(bundle)


def test_what_is_no_space_is_refused(bundle):
    assert "ModelSpace" in refusal(bundle, nn.Linear)


def test_a_network_that_does_not_return_one_tensor_is_refused(tmp_path):
    network = trained(SKIP)
    network.head = nn.LSTM(6, 2)
    with pytest.raises(UsageError, match="one tensor"):
        write_bundle(tmp_path / "bundle", network, SKIP, REFERENCE, Example((torch.randn(5, 3),)), {})
