"""A living process of the speed benchmark: trains one mode, a turn at a time, under a real Lightning Trainer.

The gate is the loader of the training batches: before it hands out the next batch, it waits for a message that says
how many more there are. So nothing of a Trainer, a strategy or a module is replaced; timers stand around the two steps
of a pair and, for what may hide between them, around whole pairs, from one batch to the next.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import ModelSpace
from speed_modes import LARGEST, Mode
from speed_spaces import Task, task_of
from torch import Tensor, nn

# Large, so that no schedule ends; a search asks for it in advance.
ENDLESS = 1_000_000
BATCHES = 4
CLIP = 5.0  # of every training and search: the default of this strategy
# So slow that the logits stay uniform: every turn draws from the same distribution.
ARC_LEARNING_RATE = 1e-7


class _Closed(Exception):
    """The space is done with."""


class Training(LightningModule):
    """Classification by AdamW, nothing logged: the trainings of all modes.

    Args:
        fused: whether AdamW updates all weights in one call, which Lightning refuses where it clips and casts.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self._fused = fused

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, classes = batch
        return nn.functional.cross_entropy(self.model(images), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=self._fused)


class InTurn(nn.Module):
    """Single networks, each for one batch: (b)."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks, self._next = nn.ModuleList(networks), 0

    def replace(self, networks: list[nn.Module]) -> None:
        self.networks, self._next = nn.ModuleList(networks), 0

    def forward(self, x: Tensor) -> Tensor:
        network = self.networks[self._next % len(self.networks)]
        self._next += 1
        return network(x)


class Meter:
    """Times or bytes of the parts of steps: ``structure``, ``weight``, ``pair``.

    On a CPU the time of this process counts, which others on the machine do not lengthen; on a GPU the time on the
    wall, with the device waited for.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self.parameters: list[nn.Parameter] = []
        self.clear(memory=False)

    def clear(self, memory: bool) -> None:
        """Forget everything, and measure bytes or times from now on."""
        self.memory = memory
        self.seconds: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}
        self.bytes: dict[str, list[int]] = {}
        self._starts: dict[str, tuple[float, float]] = {}
        self._contexts: dict[str, ExitStack] = {}
        self._saved: dict[int, Any] = {}
        if memory and self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def begin(self, part: str) -> None:
        if self.memory and part != "pair":
            self._saved = {}
            context = self._contexts[part] = ExitStack()
            context.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor))
        self._starts[part] = self._now()

    def end(self, part: str) -> None:
        start, now = self._starts.pop(part), self._now()
        self.seconds.setdefault(part, []).append(now[0] - start[0])
        self.wall.setdefault(part, []).append(now[1] - start[1])
        if self.memory and part != "pair":
            self._contexts.pop(part).close()
            own = {p.untyped_storage().data_ptr() for p in self.parameters}
            saved = sum(storage.nbytes() for place, storage in self._saved.items() if place not in own)
            gradients = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
            self.bytes.setdefault(part, []).append(saved + gradients)
            self._saved = {}

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self.begin(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end(part)

        return measured

    def peak(self) -> int:
        """Most bytes allocated on the GPU since :meth:`clear`; 0 without one."""
        return torch.cuda.max_memory_allocated() if self._on_gpu else 0

    def _now(self) -> tuple[float, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
            now = time.perf_counter()
            return now, now
        return time.process_time(), time.perf_counter()

    def _pack(self, tensor: Tensor) -> Tensor:
        # The storage is held until the step has ended, so that its address is not used again.
        storage = tensor.untyped_storage()
        self._saved[storage.data_ptr()] = storage
        return tensor


class Gate:
    """The training batches: of each turn so many as its message says."""

    def __init__(self, connection: Connection, meter: Meter, batches: list[Any]) -> None:
        self._connection, self._meter, self._batches = connection, meter, batches
        self.prepare: Callable[[dict[str, Any]], None] = lambda message: None

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Any]:
        answer: dict[str, Any] = {}
        while True:
            self._connection.send(answer)
            message = self._connection.recv()
            if message["kind"] == "close":
                raise _Closed
            self.prepare(message)
            yield from self._first(message["warm"])
            self._meter.clear(memory=message["kind"] == "memory")
            yield from self._first(message["pairs"])
            answer = {
                "seconds": self._meter.seconds, "wall": self._meter.wall, "bytes": self._meter.bytes,
                "peak": self._meter.peak(),
            }  # fmt: skip

    def _first(self, number: int) -> Iterator[Any]:
        for k in range(number):
            self._meter.begin("pair")
            yield self._batches[k % len(self._batches)]
            self._meter.end("pair")


class _Cycled:
    """The batches of the structure, as many as there may be."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self._batches


def serve(connection: Connection, name: str, mode: Mode, options: dict[str, Any]) -> None:
    """Open one space after the other, until a message says that there are no more.

    Args:
        connection: messages are dicts: ``{"kind": "open", "space": name}``, then any number of turns ``{"kind":
            "time" or "memory", "pairs": number, "warm": number before them that are not measured}``, then
            ``{"kind": "close"}``; at last ``{"kind": "end"}``. Every message but the last is answered by a dict, which
            has the ``reason`` if the mode cannot train the space.
        name: of the mode.
        mode: what is trained.
        options: ``device``, ``precision``, ``scale`` of the batches.
    """
    torch.set_num_threads(1)
    for logger in ("pytorch_lightning", "lightning.pytorch", "nni", "nni_gumbel"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    while True:
        message = connection.recv()
        if message["kind"] == "end":
            return
        if message["kind"] == "close":  # of a space that could not be trained
            connection.send({})
            continue
        if message["kind"] != "open":
            connection.send({"reason": "not open"})
            continue
        try:
            _train(connection, name, mode, task_of(message["space"]), options)
        except _Closed:
            connection.send({})
        except Exception as error:
            connection.send({"reason": f"{type(error).__name__}: {error}".splitlines()[0][:120]})


def _train(connection: Connection, name: str, mode: Mode, task: Task, options: dict[str, Any]) -> None:
    pl.seed_everything(0, verbose=False)
    meter = Meter(options["device"])
    gate = Gate(connection, meter, task.batches(BATCHES, seed=1, scale=options["scale"]))
    structure = _Cycled(task.batches(BATCHES, seed=2, scale=options["scale"]))
    trainer = Trainer(
        max_epochs=1, limit_val_batches=0, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, devices=1,
        accelerator="gpu" if options["device"] == "cuda" else "cpu", precision=options["precision"],
        gradient_clip_val=CLIP if mode.strategy is None else None,
    )  # fmt: skip
    training = Training(fused=options["precision"] == "32-true")
    evaluator = Lightning(training, trainer, train_dataloaders=gate, val_dataloaders=structure)
    if mode.strategy is None:
        _train_single(evaluator, name, task, gate, meter)
        return
    space, strategy = task.space(), _strategy(mode)
    supernet = strategy.mutate_model(space)
    evaluator = strategy.mutate_evaluator(evaluator)
    module = evaluator.module
    if mode.strategy == "GumbelSearch":
        _watch_ours(module, meter)
    else:
        _watch_nnis(module, meter)
    _let_the_meter_know(evaluator, supernet, meter)
    evaluator.evaluate(supernet)


def _train_single(evaluator: Lightning, name: str, task: Task, gate: Gate, meter: Meter) -> None:
    draw = random.Random(0)
    if name == LARGEST:
        model: nn.Module = task.space().freeze(task.largest_network())
    else:
        model = InTurn([_random(task, draw)])

        def prepare(message: dict[str, Any]) -> None:
            model.replace([_random(task, draw).to(evaluator.module.device) for _ in range(message["pairs"])])
            (optimizer,) = evaluator.trainer.optimizers
            optimizer.state.clear()
            optimizer.param_groups.clear()
            optimizer.add_param_group({"params": list(model.parameters())})
            meter.parameters = list(model.parameters())

        gate.prepare = prepare
    # Automatic optimisation runs forward, backward and update in here.
    evaluator.module.optimizer_step = meter.wrap("weight", evaluator.module.optimizer_step)
    _let_the_meter_know(evaluator, model, meter)
    evaluator.evaluate(model)


def _random(task: Task, draw: random.Random) -> nn.Module:
    space: ModelSpace = task.space()
    state = np.random.RandomState(draw.randrange(2**31))
    return space.freeze({label: v.random(random_state=state) for label, v in space.simplify().items()})


def _strategy(mode: Mode) -> Any:
    if mode.strategy == "GumbelSearch":
        from nni_gumbel import GumbelSearch

        # Every step of it is a structure step and a weight step, which are what is measured.
        return GumbelSearch(
            preset="gradual", arc_learning_rate=ARC_LEARNING_RATE, log_prob_every_n_step=0,
            gradient_clip_val=CLIP,
        )  # fmt: skip
    import nni.nas.strategy

    return getattr(nni.nas.strategy, mode.strategy)(
        arc_learning_rate=ARC_LEARNING_RATE, gradient_clip_val=CLIP, log_prob_every_n_step=ENDLESS
    )


def _watch_ours(module: Any, meter: Meter) -> None:
    """What the structure does stands in front of Lightning's own step, inside of it: the weights begin behind that."""
    begin_step, optimizer_step = module._begin_step, module.optimizer_step
    module._structure_step = meter.wrap("structure", module._structure_step)

    def begin(*args: Any, **kwargs: Any) -> None:
        begin_step(*args, **kwargs)
        meter.begin("weight")

    def step(*args: Any, **kwargs: Any) -> None:
        optimizer_step(*args, **kwargs)
        meter.end("weight")

    module._begin_step, module.optimizer_step = begin, step


def _watch_nnis(module: Any, meter: Meter) -> None:
    """NNI's ``training_step`` begins each of its two phases with ``resample``."""
    resample, training_step = module.resample, module.training_step
    parts = ["structure", "weight"]

    def resample_and_begin(*args: Any, **kwargs: Any) -> Any:
        if len(parts) == 1:
            meter.end("structure")
        meter.begin(parts.pop(0))
        return resample(*args, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Any:
        parts[:] = ["structure", "weight"]
        result = training_step(*args, **kwargs)
        meter.end("weight")
        return result

    module.resample, module.training_step = resample_and_begin, step


def _let_the_meter_know(evaluator: Lightning, model: nn.Module, meter: Meter) -> None:
    # The module of a search holds the logits beside the model.
    meter.parameters = list({*model.parameters(), *evaluator.module.parameters()})
