"""Making a heal file: layers apart, the child's fit, plain and healed prune measured on texts that were not fitted."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import surgeon_kernels
from surgeon.engine.client import EngineRun
from surgeon.engine.protocol import FEWEST_TOKENS, Engine, Finished, HealedMatrix, HealJob, HealLayer, Started
from surgeon.errors import SurgeonError
from surgeon.gguf.identity import open_identity
from surgeon.gguf.layout import Entry
from surgeon.healing.heal_file import HeldOut, NewTensor, Origin, Refit, save_heal
from surgeon.layer_lists import spans
from surgeon.measure.healing.heal_check import HeldOutCheck
from surgeon.measure.healing.heal_cost import HealCost, cost
from surgeon.measure.layer_files import GAINS, as_dicts, write_layer
from surgeon.measure.progress import Standing, followed
from surgeon.measure.scratch import scratch_folder, sweep
from surgeon.measure.speeds import HEAL, Speeds, Stage
from surgeon.model.model import Model
from surgeon.plan.plan import Healing
from surgeon.write_guard import REPLACE, Kind, Permit, may_write
from surgeon_kernels.formats import FORMATS

# llama.cpp aborts where a layer of these is run alone on a stream: llama4's scales of attention have no place in a
# graph of rotated layers, glm4moe takes nothing but tokens.
_NOT_ON_STREAMS = frozenset(["llama4", "glm4moe"])


@dataclass(frozen=True)
class HealRequest:
    """What is wanted. pruned: the model's layers to make up for; texts: to fit on; held_out: to measure on, in so many
    chunks each; per_column: tokens for each column of ffn_down; before_only: only the layers before the gaps.

    experts: refit those too, not only attention beside them; keep_worse: write the file also where the healed model is
    worse than the plain prune on a held-out text.
    """

    model: Model
    pruned: frozenset[int]
    texts: tuple[Path, ...]
    out: Path
    held_out: tuple[Path, ...] = ()
    held_out_chunks: int = 8
    per_column: float = 30.0
    n_ctx: int = 512
    before_only: bool = False
    keep_worse: bool = False
    know_risks: bool = False
    overwrite: bool = False
    experts: bool = True

    def check(self) -> None:
        """Raises SurgeonError for layers that are not there, texts that are both fitted and held out, and the like."""
        path, there = self.model.file.path, [layer.index for layer in self.model.layers]
        if self.model.architecture in _NOT_ON_STREAMS:
            raise SurgeonError(
                f"{path}: llama.cpp does not run single layers of {self.model.architecture}; it cannot be healed"
            )
        if not self.pruned:
            raise SurgeonError(f"{path}: no layers to prune; healing makes up for pruned layers (--prune-layers 16,17)")
        absent = self.pruned - frozenset(there)
        if absent:
            raise SurgeonError(f"{path}: layer {spans(absent)} does not exist; this model has layers {spans(there)}")
        if self.pruned >= frozenset(there):
            raise SurgeonError(f"{path}: cannot prune every layer; keep at least one")
        if not self.texts:
            raise SurgeonError(f"{path}: healing needs a calibration text (-f TEXT)")
        if self.per_column < FEWEST_TOKENS:
            raise SurgeonError(f"tokens: at least {FEWEST_TOKENS:.0f} a column of ffn_down are needed, 30 are good")
        for text in (*self.texts, *self.held_out):
            if not text.is_file():
                raise SurgeonError(f"{text}: no such file")
        may_write(self.out, Kind.HEAL, self.permit)
        hashes = {_sha256(text): text for text in self.texts}
        for text in self.held_out:
            if (fitted := hashes.get(_sha256(text))) is not None:
                raise SurgeonError(f"{text}: is the text that is fitted ({fitted}); hold out another one")

    @property
    def permit(self) -> Permit:
        """What may become of `out`: it is neither the model nor a text."""
        return Permit((*self.model.file.paths, *self.texts, *self.held_out), replace=self.overwrite)

    @property
    def first(self) -> int:
        """The first layer that is run: the one before the first gap, or the model's first."""
        kept_before = [layer.index for layer in self.model.layers if layer.index < min(self.pruned)]
        return kept_before[-1] if kept_before else self.model.layers[0].index


@dataclass
class HealRun:
    """One run; `run` is the engine's run in hand, `origin` what came of it, once `steps` has ended."""

    request: HealRequest
    engine: Engine
    cache: Path
    cancelled: threading.Event = field(default_factory=threading.Event)
    run: EngineRun | None = None
    origin: Origin | None = None
    before_only: bool = False

    def cost(self) -> HealCost:
        """Memory, disk and time that it will take, before it starts."""
        request = self.request
        return cost(
            request.model, request.pruned, request.first, request.texts, widest(request.model),
            _width(request.model), request.per_column, request.n_ctx,
            with_experts=request.experts,
        )  # fmt: skip

    def steps(self) -> Iterator[Standing | HealedMatrix]:
        """Do it all. Raises SurgeonError, EngineError or Cancelled; no temporary file is left, nor half an output."""
        self.request.check()
        sweep(self.cache)
        with scratch_folder(self.cache) as folder:
            stages = 2 + (1 if self.request.held_out else 0)
            layers: list[HealLayer] = []
            for layer in self._layers():
                yield Standing("layers apart", 0, stages, len(layers) / self._count, f"layer {layer}")
                layers.append(self._layer(layer, folder))
            refits = []
            for item in self._fit(layers, folder, stages):
                if isinstance(item, HealedMatrix):
                    refits.append(_kept(item, folder))
                yield item
            yield from self._finish(refits, folder, stages)

    def _layers(self) -> Iterator[int]:
        return (layer.index for layer in self.request.model.layers if layer.index >= self.request.first)

    @property
    def _count(self) -> int:
        return sum(1 for _ in self._layers())

    def _layer(self, number: int, folder: Path) -> HealLayer:
        request = self.request
        pruned = number in request.pruned
        return write_layer(
            request.model, number, folder, pruned=pruned, know_risks=request.know_risks, experts=request.experts
        )

    def _fit(self, layers: list[HealLayer], folder: Path, stages: int) -> Iterator[Standing | HealedMatrix]:
        request = self.request
        job = HealJob(
            str(request.model.file.paths[0]), [str(text) for text in request.texts], as_dicts(layers), str(folder),
            _width(request.model), widest(request.model), request.per_column, request.n_ctx, request.before_only,
        )  # fmt: skip
        self.run = EngineRun(self.engine, job, self.cancelled)
        begun, tokens = time.monotonic(), 0
        for item in followed(self.run.messages(), "healing", "runs", 1, stages):
            if isinstance(item, (Standing, HealedMatrix)):
                yield item
            elif isinstance(item, Started):
                begun, tokens = time.monotonic(), item.n_tokens
            elif isinstance(item, Finished):
                self.before_only = bool(item.values["before_only"])
                if not self.before_only:
                    expected = self.cost()
                    work = Stage(HEAL, expected.flop * tokens / max(1, expected.tokens))
                    Speeds.of(request.model.file.paths[0], self.engine).keep(work, time.monotonic() - begun)
                self.origin = self._origin(item.values["tokens"], tuple(item.values["chunks"]))

    def _origin(self, tokens: int, chunks: tuple[int, ...]) -> Origin:
        request = self.request
        source = request.model.file.paths[0]
        return Origin(
            source.name, open_identity(request.model.file), request.pruned, tuple(text.name for text in request.texts),
            tuple(_sha256(text) for text in request.texts), chunks, request.n_ctx, tokens,
        )  # fmt: skip

    def _finish(self, refits: list[_Kept], folder: Path, stages: int) -> Iterator[Standing]:
        """Measure on the held-out texts, fall back where healing is worse, and write the file."""
        assert self.origin is not None  # Finished has come
        if not self.request.held_out:
            self._save(refits, (), self.request.out, self.request.permit)
            return
        request = self.request
        check = HeldOutCheck(
            request.model, request.pruned, request.held_out, request.held_out_chunks, request.n_ctx,
            request.know_risks, self.engine, self.cache, folder, self.cancelled, stages,
        )  # fmt: skip
        trial = folder / "heal.gguf"
        for chosen in self._choices(refits):
            number = self._save(chosen, (), trial, REPLACE)
            found = yield from check.compared(Healing(str(trial), number))
            worse = [one for one in found if one.healed > one.plain]
            if not worse or request.keep_worse:
                self._save(chosen, found, request.out, request.permit)
                return
        worst = worse[0]
        raise SurgeonError(
            f"{self.request.out}: not written: on {worst.text} healing is worse than pruning alone (KL divergence "
            f"{worst.plain:.3f} -> {worst.healed:.3f}); give more text of that kind "
            "(surgeon heal --keep-worse writes it all the same)"
        )

    def _choices(self, refits: list[_Kept]) -> Iterator[list[_Kept]]:
        """Everything; then only the matrices before the gaps."""
        yield refits
        before = [one for one in refits if one.layer + 1 in self.request.pruned]
        if len(before) < len(refits):
            yield before

    def _save(self, refits: list[_Kept], held_out: tuple[HeldOut, ...], path: Path, permit: Permit) -> str:
        assert self.origin is not None
        rows = tuple(one.refit for one in refits)
        self.origin = replace(self.origin, refits=rows, held_out=held_out)
        model = self.request.model
        types = {tensor.name: tensor.type_name for tensor in model.tensors}
        tensors = [_new_tensor(name, file, types[name]) for one in refits for name, file in sorted(one.files.items())]
        return save_heal(path, model.architecture, self.origin, tensors, permit)


@dataclass(frozen=True)
class _Kept:
    """A refit whose arrays lie in the scratch folder. files: tensor name -> .npy."""

    layer: int
    refit: Refit
    files: dict[str, Path]


def _kept(message: HealedMatrix, folder: Path) -> _Kept:
    name = f"blk.{message.layer}.{message.kind}.weight"
    names = {"weight": name}
    if message.kind in GAINS:  # experts have none
        names["gain"] = f"blk.{message.layer}.{GAINS[message.kind]}.weight"
    files = {name: Path(message.file)} if message.file else {}
    for part, values in message.arrays.items():
        files[names[part]] = folder / f"healed-{message.layer}-{message.kind}-{part}.npy"
        try:
            np.save(files[names[part]], values)
        except OSError as error:
            raise SurgeonError(f"{folder}: cannot be written: {error.strerror}; make room") from error
    refit = Refit(name, message.method, message.penalty, message.shrink, message.before, message.after, message.note)
    return _Kept(message.layer, refit, files)


def _new_tensor(name: str, file: Path, source_type: str) -> NewTensor:
    values: NDArray[np.float32] = np.load(file, mmap_mode="r")
    kind = "BF16" if source_type == "BF16" and values.ndim > 1 else "F32"
    format_ = FORMATS[kind]
    entry = Entry(name, values.shape[::-1], format_.number, values.size * format_.block_bytes)

    def data() -> Iterator[bytes]:
        for matrix in values.reshape(-1, *values.shape[-2:]):  # of one expert after the other
            rows = np.ascontiguousarray(matrix, np.float32)
            yield rows.tobytes() if kind == "F32" else surgeon_kernels.quantize(rows, kind).tobytes()

    return NewTensor(entry, data)


def _width(model: Model) -> int:
    width = model.hparam("embedding_length")
    if not isinstance(width, int):
        raise SurgeonError(f"{model.file.path}: has no {model.architecture}.embedding_length; it cannot be healed")
    return width


def widest(model: Model) -> int:
    """Columns of the widest ffn_down, or of attn_output where experts have the place of the feed-forward."""
    matrices = [tensor for tensor in model.tensors if len(tensor.ne) == 2]
    found = {short: max((one.ne[0] for one in matrices if one.short == short), default=0) for short in GAINS}
    columns = found["ffn_down"] or found["attn_output"]
    if not columns:
        raise SurgeonError(f"{model.file.path}: has neither ffn_down nor attn_output matrices; it cannot be healed")
    return columns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
