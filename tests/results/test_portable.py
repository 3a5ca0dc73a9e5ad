"""An exported network runs without NNI and without this package, and says why where it cannot."""

import subprocess
import sys

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_gumbel.results.bundle import load, write_bundle
from nni_gumbel.results.example import Example
from nni_gumbel.results.portable import ONNX, PROGRAM, PROGRAMS, SOURCE, source_of, write_programs
from nni_gumbel.results.space import SpaceReference, network_of


class Residual(ModelSpace):
    """Most of what a small network is made of, layers with arguments that are not in their ``repr`` among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=1e-3))
        self.layer = LayerChoice({
            "pool": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            "conv": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GELU("tanh"), nn.Dropout(0.1)),
        }, label="layer")  # fmt: skip
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.layer(x)).mean((2, 3)))


class Branching(Residual):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Scaled(Residual):
    """With a weight and a buffer of its own, as a layer scale or a normalisation has them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 1, 1, 1), 0.5))
        self.register_buffer("mean", torch.full((1, 1, 8, 8), 0.1))

    def forward(self, x):
        return super().forward((x - self.mean) * self.scale)


class TwoInputs(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice([nn.Linear(2, 3), nn.Linear(2, 3, bias=False)], label="layer")

    def forward(self, x, *, scale):
        return self.layer(x) * scale


def bundle_of(folder, kind=Residual, chosen="conv", example=None):
    space, sample = kind(), {"layer": chosen}
    network = network_of(space, sample)
    example = example or Example((torch.randn(3, 1, 8, 8),))
    for _ in range(3):
        example(network.train())  # running statistics of their own
    write_bundle(folder / "bundle", network, sample, SpaceReference(__name__, kind.__name__), example, {})
    return folder / "bundle"


def in_a_process_without_us(code, folder):
    forbidden = "import sys\nfor name in ('nni', 'nni_gumbel', 'safetensors'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", forbidden + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["conv", "pool"])
def exported(request, tmp_path_factory):
    """The folder of an export, inputs of another batch size, and the network's outputs for them."""
    bundle = bundle_of(tmp_path_factory.mktemp(request.param), chosen=request.param)
    assert write_programs(bundle, bundle) == {}
    images = torch.randn(5, 1, 8, 8)
    torch.save((images, load(bundle)(images).detach()), bundle / "expected.pt")
    return bundle


COMPARED = (
    "import torch; images, expected = torch.load('expected.pt'); torch.testing.assert_close({}, expected)"
)


def test_its_source_loads_the_weights_with_torch_alone(exported):
    code = f"from model import load; network = load(); {COMPARED.format('network(images)')}"
    in_a_process_without_us(code, exported)


def test_its_source_can_be_trained_as_the_network_can(exported):
    code = "import torch; from model import load; n = load().train(); n(torch.zeros(2, 1, 8, 8)).sum().backward()"
    in_a_process_without_us(code, exported)
    namespace = {"__file__": str(exported / SOURCE)}
    exec((exported / SOURCE).read_text(), namespace)
    theirs, ours = namespace["load"]().train(), load(exported).train()
    images = torch.randn(4, 1, 8, 8)
    torch.manual_seed(0)
    expected = ours(images)
    torch.manual_seed(0)
    torch.testing.assert_close(theirs(images), expected)


def test_its_source_has_the_chosen_layers_alone():
    space = Residual()
    text = source_of(network_of(space, {"layer": "pool"}), Example((torch.zeros(2, 1, 8, 8),)))
    assert "AvgPool2d" in text and "count_include_pad=False" in text
    assert "unused" not in text and "GELU" not in text and "nni." not in text


def test_its_torch_program_takes_batches_of_any_size(exported):
    module = f"torch.export.load('{PROGRAM}').module()"
    in_a_process_without_us(COMPARED.format(f"{module}(images)"), exported)
    in_a_process_without_us(f"import torch; assert len({module}(torch.zeros(1, 1, 8, 8))) == 1", exported)


def test_its_onnx_program_takes_batches_of_any_size(exported):
    code = f"import onnxruntime; session = onnxruntime.InferenceSession('{ONNX}')\n"
    code += "name = session.get_inputs()[0].name\n"
    run = "torch.from_numpy(session.run(None, {name: images.numpy()})[0])"
    in_a_process_without_us(code + COMPARED.replace("{}", run), exported)


def test_what_cannot_be_written_is_left_out_with_a_line_each(tmp_path, caplog):
    bundle = bundle_of(tmp_path, Branching)
    missing = write_programs(bundle, bundle)
    assert {*missing} == {*PROGRAMS} and all(missing.values())
    assert not any((bundle / name).exists() for name in PROGRAMS)
    assert all(f"{name} could not be written" in caplog.text for name in PROGRAMS)


def test_weights_and_buffers_outside_of_layers_are_written_too(tmp_path):
    bundle = bundle_of(tmp_path, Scaled)
    assert write_programs(bundle, bundle) == {}
    code = "from model import load; n = load(); assert n.scale.item() == 0.5 and 'mean' in dict(n.named_buffers())"
    in_a_process_without_us(code, bundle)


def test_a_network_of_several_inputs_is_written_too(tmp_path):
    example = Example((torch.randn(3, 2),), {"scale": torch.rand(3, 1)})
    bundle = bundle_of(tmp_path, TwoInputs, 0, example)
    assert write_programs(bundle, bundle) == {}
