"""A trained network as a folder: the choices, the weights, and what is needed to trust them.

=====================  =================================================================================
architecture.json      the NNI sample: label -> chosen value, only labels that the network uses
model.safetensors      its ``state_dict``
bundle.json            the space by name and arguments, the facts about the network, the checksums of the
                       three other files
probe.safetensors      a few inputs and the network's outputs for them when it was written
README.md              for people; only in an export
model.py, model.pt2,   the network without NNI and without this package (see ``portable.py``); only in an
model.onnx             export
front.csv, front.png   all networks of the experiment (see ``front.py``); only in an export
=====================  =================================================================================

A network is rebuilt by the constructor of its space, and pruned as it was (``bundle.json`` lists the
layers that went), so that a bundle holds no code; the probe tells when the space's code has changed
since. A folder appears under its name complete or not at all.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gumbel import __version__
from nni_gumbel.errors import UsageError, first_line, user_code
from nni_gumbel.results.space import SpaceReference, network_of, sample_of

if TYPE_CHECKING:
    from nni.nas.nn.pytorch import ModelSpace
    from torch import nn

    from nni_gumbel.results.example import Example

ARCHITECTURE, WEIGHTS, FACTS, PROBE, README = (
    "architecture.json", "model.safetensors", "bundle.json", "probe.safetensors", "README.md",
)  # fmt: skip
_SUMMED = (ARCHITECTURE, WEIGHTS, PROBE)
_REQUIRED = (*_SUMMED, FACTS)

# Another machine adds up in another order: about 1e-6 a layer in float32. Another activation or
# another input moves outputs by some per cent.
_TOLERANCE = 1e-3


def write_bundle(
    directory: str | Path,
    network: nn.Module,
    architecture: dict[str, Any],
    space: SpaceReference,
    example: Example,
    facts: dict[str, Any],
    pruned: nn.Module | None = None,
) -> None:
    """Write a trained, frozen network as a bundle, in place of an older one.

    Args:
        directory: the bundle's folder; its parents are made.
        network: as NNI's ``freeze`` returned it, trained; it is left as it is.
        architecture: the sample it was frozen with, used labels only.
        space: where it comes from.
        example: a small batch of what it takes.
        facts: what a reader may want to know (metric, seed, parameters, FLOPs ...); JSON values.
        pruned: what :func:`~nni_gumbel.results.pruning.prune` made of the network, on the same ``example``:
            its weights are written, and ``load`` gives it back.

    Raises:
        UsageError: the folder cannot be written, or the network does not return one tensor.
    """
    import torch
    from safetensors.torch import save_file

    from nni_gumbel.results.pruning import removed_layers

    settled = copy.deepcopy(network if pruned is None else pruned).cpu().eval()
    probe = example.cpu()
    with torch.no_grad():
        output = probe(settled)
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"--space: {space} returns {type(output).__name__}, a bundle needs one tensor; return that"
        )
    versions = {"nni_gumbel": __version__, "nni": version("nni"), "torch": version("torch")}
    described, inputs = probe.to_tensors()
    bundle = {
        "space": str(space), "arguments": space.arguments, "inputs": described, **facts, "versions": versions
    }  # fmt: skip
    if pruned is not None and pruned is not network:
        bundle["pruned"] = {"removed_layers": removed_layers(network, pruned)}
    with _in_place_of(directory) as folder:
        _write_json(folder / ARCHITECTURE, architecture)
        # Copies, since safetensors refuses tensors that share memory (tied weights).
        weights = {key: value.clone().contiguous() for key, value in settled.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        save_file(inputs | {"output": output.contiguous()}, folder / PROBE)
        _write_json(
            folder / FACTS, {**bundle, "sha256": {name: sha256_of(folder / name) for name in _SUMMED}}
        )


def check_bundle(path: str | Path) -> dict[str, Any]:
    """See that a folder holds a whole bundle, as it was written, without building the network.

    Returns:
        What ``bundle.json`` holds.

    Raises:
        UsageError: a file is missing or is not the one that was written.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"path: there is no folder {str(path)!r}; give a folder that holds {FACTS}")
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"path: {str(path)!r} has no {missing[0]}; give the folder of a whole bundle")
    with user_code(f"path: {folder} holds a damaged file", "copy the bundle again"):
        facts = dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        for name, digest in facts.get("sha256", {}).items():
            if name in _SUMMED and sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not the file that was written")
    return facts


def copy_bundle(source: str | Path, destination: str | Path, readme: str, more: Sequence[Path] = ()) -> None:
    """Copy a bundle and add its README and more files; needs no torch.

    Raises:
        UsageError: the source is no complete bundle, or the destination cannot be written.
    """
    check_bundle(source)
    with _in_place_of(destination) as folder:
        for file in (*(Path(source) / name for name in _REQUIRED), *more):
            shutil.copyfile(file, folder / file.name)
        (folder / README).write_text(readme, encoding="utf-8")


def load(path: str | Path, space: type[ModelSpace] | ModelSpace | None = None) -> nn.Module:
    """The network of a bundle; see :func:`load_with_example`."""
    network, _ = load_with_example(path, space)
    return network


def load_with_example(
    path: str | Path, space: type[ModelSpace] | ModelSpace | None = None
) -> tuple[nn.Module, Example]:
    """Rebuild the network of a bundle, on the CPU and in ``eval()``, without any choice in it.

    Args:
        path: the bundle's folder.
        space: the class of the space, or an instance (left as it is); if omitted, the class is
            imported by the name in the bundle, from the working directory or ``sys.path``.

    Returns:
        The network, a ``torch.fx.GraphModule`` if it was pruned, whose outputs are those that it had when the bundle
        was written; and a small batch of what it takes.

    Raises:
        UsageError: a file is missing or damaged, or the space is not the one that was searched.
    """
    import torch
    from nni.nas.nn.pytorch import ModelSpace
    from safetensors.torch import load_file

    from nni_gumbel.results.example import Example
    from nni_gumbel.results.pruning import prune

    folder, facts = Path(path), check_bundle(path)
    with user_code(f"path: {folder} holds a damaged file", "copy the bundle again"):
        architecture = dict(json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8")))
        weights, probe = load_file(folder / WEIGHTS), load_file(folder / PROBE)
        example, expected = Example.from_tensors(facts["inputs"], probe), probe["output"]
        reference = replace(SpaceReference.parse(facts["space"]), arguments=dict(facts["arguments"]))
    try:
        built = space if isinstance(space, ModelSpace) else reference.build(space)
    except UsageError as error:
        raise UsageError(f"{error}, or give the class: load(path, space=...)") from error

    changed = f"space: {reference} is not the space that {folder} was searched in"
    remedy = "give the class as it was then, or search again"
    unknown = sorted(set(architecture) - set(built.simplify()))
    if unknown:
        raise UsageError(f"{changed}: it has no choice {unknown[0]!r}; {remedy}")
    try:
        network = network_of(built, sample_of(built, architecture))
        if "pruned" in facts:
            network = prune(network, *example.args, **example.kwargs)
        network.load_state_dict(weights, strict=True)
        network.eval()
        with torch.no_grad():
            output = example(network)
    except (
        Exception
    ) as error:  # a changed class fails wherever its change lies; torch tells on the second line
        line = " ".join(line.strip().rstrip(".") for line in str(error).splitlines()[:2])
        raise UsageError(f"{changed}: {type(error).__name__}: {line}; {remedy}") from error
    tolerance = _TOLERANCE * max(1.0, expected.abs().max().item())
    alike = {"rtol": _TOLERANCE, "atol": tolerance, "equal_nan": True}
    if output.shape != expected.shape or not torch.allclose(output, expected, **alike):
        raise UsageError(f"{changed}: with the same weights it computes something else; {remedy}")
    return network, example


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _in_place_of(path: str | Path) -> Iterator[Path]:
    """A hidden folder to be filled, which then takes the place of a bundle or of nothing."""
    folder = Path(path).absolute()
    if not _may_be_replaced(folder):
        raise UsageError(
            f"path: {str(folder)!r} exists and is no bundle; it is not replaced, give another folder"
        )
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        _take_place(fresh, folder)
    except OSError as error:
        raise UsageError(
            f"path: {str(folder)!r} cannot be written: {first_line(error)}; give another folder"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _may_be_replaced(folder: Path) -> bool:
    """Whether a path is a bundle or nothing. A folder that another writer replaces meanwhile is looked at again."""

    def identity() -> tuple[int, int] | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = folder.stat()
            return found.st_ino, found.st_ctime_ns
        return None

    while (seen := identity()) is not None:
        if (folder / FACTS).is_file():
            return True
        if identity() == seen:
            return False
    return True


def _take_place(fresh: Path, folder: Path) -> None:
    """Rename a folder to that of another one, or of none: of two that do so at once each is whole, and one stays."""
    while True:
        try:
            fresh.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        aside = fresh.with_name(f"{fresh.name}.old")
        with suppress(FileNotFoundError):  # another writer was faster
            folder.rename(aside)
            shutil.rmtree(aside)
