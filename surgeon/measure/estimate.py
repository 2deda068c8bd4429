"""What a run will take, reckoned before it begins: time from the speed of earlier runs, disk and memory from its shape.

Memory is the engine's process at its peak: the weights as they lie in the file, keys and values, the logits of one
decode, the graph's buffer (as wide as the vocabulary or three feed-forward widths), and what compares logits. What the
run exchanges or fits comes on top.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import figures
from surgeon.engine.libraries import find_libraries
from surgeon.engine.protocol import Engine, ImatrixJob, PruneScanJob
from surgeon.errors import SurgeonError
from surgeon.fit.vram import Card, cache_bytes
from surgeon.measure.base_cache import Base, estimated_bytes
from surgeon.measure.evaluation import SPEED_REPETITIONS, SPEED_TESTS, Subject, Wanted, is_probed, task_kind
from surgeon.measure.healing.heal_cost import BYTES_PER_TOKEN
from surgeon.measure.speeds import (
    BASE,
    BENCH,
    COPY,
    DIVERGENCE,
    HEAL,
    HEALED_SCAN,
    IMATRIX,
    MOMENTS,
    PERPLEXITY,
    SCAN,
    START,
    TASK,
    Speeds,
    Stage,
    encoding,
)
from surgeon.model.model import Model
from surgeon.moments.account import Account, available_memory
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.trials.records import is_unchanged

if TYPE_CHECKING:
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.healing.heal_run import HealRun
    from surgeon.resolve.resolution import Resolution

_MOST_BYTES_PER_TOKEN = 8  # of any text: a text longer than that surely has the tokens asked for
_BATCH, _UBATCH = 2048, 512
_LOGITS = 512 << 20  # bytes of one decode at most, unless one chunk has more
_PROCESS = 64 << 20  # Python and llama.cpp's code
_SLABS = 128 << 20  # logits being compared, with what is worked out from them; at most four times as much as there are
_HASHED = 64 << 20  # bytes of a text that is read at a key press to see whether its base is there
_SUMS_PER_COLUMN = 24  # bytes of an importance matrix and of what is kept beside it to resume


@dataclass(frozen=True)
class Estimate:
    """work: how much it is, in words; disk: bytes in `folder`; memory: bytes; on_card: some of them on a GPU."""

    work: str
    stages: tuple[Stage, ...]
    disk: int = 0
    folder: Path = Path()
    memory: int = 0
    on_card: bool = False

    def time(self, speeds: Speeds) -> str:
        """`about 0:42 for 8,192 tokens`; without an earlier run only how much it is."""
        seconds = speeds.seconds(self.stages)
        if seconds is None:
            return f"time unknown until the first chunk; {self.work}"
        return f"about {figures.duration(max(1, seconds))} for {self.work}"

    def on_disk(self) -> tuple[str, bool]:
        """`disk 102 MB of 64.1 GB free`, and whether it fits."""
        return _beside("disk", self.disk, free_bytes(self.folder), figures.size)

    def in_memory(self) -> tuple[str, bool]:
        """`memory 760 MiB of 20.1 GiB free`, and whether it fits."""
        if self.on_card:
            return f"memory {figures.memory(self.memory)}, in part the card's", True
        return _beside("memory", self.memory, available_memory(), figures.memory)

    def line(self, speeds: Speeds) -> str:
        """All of it, for a command line."""
        return f"{self.time(speeds)}; {self.on_disk()[0]}, {self.in_memory()[0]}"


def _beside(what: str, needed: int, free: int, shown: Callable[[float], str]) -> tuple[str, bool]:
    fits = needed <= free
    if not needed:
        return f"nothing on {what}, {shown(free)} free", True
    return f"{what} {shown(needed)}{' of' if fits else ', only'} {shown(free)} free", fits


def free_bytes(folder: Path) -> int:
    """On the disk of a folder that may not be there yet."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Chunks:
    """Of a text: count of n_ctx tokens each; exact: the text surely has them."""

    count: int
    n_ctx: int
    exact: bool

    @classmethod
    def of(cls, text: Path, n_ctx: int, wanted: int = -1) -> Chunks:
        """The first `wanted` (-1: all). Raises SurgeonError."""
        try:
            nbytes = text.stat().st_size
        except OSError as error:
            raise SurgeonError(f"{text}: cannot be read: {error.strerror}") from error
        there = int(nbytes / BYTES_PER_TOKEN / n_ctx)
        if 0 <= wanted <= nbytes // (_MOST_BYTES_PER_TOKEN * n_ctx):
            return cls(wanted, n_ctx, True)
        return cls(there if wanted < 0 else min(there, wanted), n_ctx, False)

    @property
    def tokens(self) -> int:
        return self.count * self.n_ctx

    def words(self, runs: float = 1) -> str:
        """`8,192 tokens`, `some 43,000 tokens` where that is read off the size of the text."""
        tokens = self.tokens * runs
        return f"{tokens:,.0f} tokens" if self.exact else f"some {float(f'{tokens:.2g}'):,.0f} tokens"


# --- memory


def engine_memory(model: Model, weights: int, chunks: Chunks, *, every_row: bool = False, alone: bool = False) -> int:
    """Of the engine's process. weights: bytes it loads; every_row: all logits of a chunk, not those of its second half;
    alone: one chunk at a time.
    """
    n_ctx, vocabulary = chunks.n_ctx, n_vocab(model)
    by_memory = _LOGITS // (4 * max(1, vocabulary) * n_ctx)
    n_seq = 1 if alone else max(1, min(_BATCH // n_ctx, by_memory, chunks.count))
    rows = min(n_seq * n_ctx, max(_BATCH, n_ctx if alone else 0))
    rows = rows if every_row or alone else rows - rows // 2
    widest = max(vocabulary, 3 * _hparam(model, "feed_forward_length"))
    graph = 4 * min(_UBATCH, n_seq * n_ctx) * (widest + 6 * _hparam(model, "embedding_length"))
    keys = cache_bytes(model, Card(0, n_seq * n_ctx, n_seq))
    logits = 4 * rows * vocabulary
    return weights + keys + logits + min(_SLABS, 4 * logits) + graph + _PROCESS


def n_vocab(model: Model) -> int:
    """Tokens of the vocabulary, 0 where the file has none."""
    tokens = model.file.kv.get("tokenizer.ggml.tokens")
    return 0 if tokens is None else tokens.count


def _hparam(model: Model, key: str) -> int:
    value = model.hparam(key)
    if isinstance(value, list):
        value = max((one for one in value if isinstance(one, int)), default=0)
    return value if isinstance(value, int) else 0


# --- one function for each kind of run


def of_evaluation(subject: Subject, wanted: Wanted, model: Model, engine: Engine, cache: Path) -> Estimate:
    """Raises SurgeonError."""
    made = subject.resolution if subject.output is None else None
    unchanged = made is not None and is_unchanged(made.plan)
    new = None if unchanged else made
    probed, loaded = is_probed(subject, wanted), _loaded(subject, new, model)
    parts = [*_of_tasks(wanted)]
    if new is not None:
        parts.insert(0, _of_plan(new, probed=probed))
    if wanted.text is not None and (wanted.perplexity or wanted.divergence):
        if probed and new is not None:  # beside the model: what is exchanged, made here and held there
            loaded = model.file.nbytes + 2 * new.total_bytes
        parts.insert(0, _of_text(wanted, model, engine, cache, loaded, compared=not (wanted.divergence and unchanged)))
    found = _together(parts, cache)
    memory = found.memory or engine_memory(model, loaded, Chunks(1, _UBATCH, exact=True))
    return replace(found, memory=memory, on_card=engine.n_gpu_layers != 0)


def _loaded(subject: Subject, new: Resolution | None, model: Model) -> int:
    """Bytes of the file that is measured."""
    if subject.output is not None and subject.output.is_file():
        return subject.output.stat().st_size
    return model.file.nbytes if new is None else new.total_bytes


def _of_text(wanted: Wanted, model: Model, engine: Engine, cache: Path, loaded: int, *, compared: bool) -> Estimate:
    """The base where it is missing, and the model itself. compared: it is not the base that is wanted alone."""
    assert wanted.text is not None
    chunks = Chunks.of(wanted.text, wanted.n_ctx, wanted.n_chunks)
    stages, disk, memory = [], 0, 0
    if wanted.divergence and not (compared and _is_made(model, wanted, engine, cache)):
        stages += [Stage(START), Stage(BASE, chunks.tokens, chunks.n_ctx)]
        disk, memory = _base_bytes(model, chunks), engine_memory(model, model.file.nbytes, chunks)
    if compared:
        kind = DIVERGENCE if wanted.divergence else PERPLEXITY
        stages += [Stage(START), Stage(kind, chunks.tokens, chunks.n_ctx)]
        memory = max(memory, engine_memory(model, loaded, chunks))
    return Estimate(chunks.words(len(stages) // 2), tuple(stages), disk, cache, memory)


def _of_plan(made: Resolution, *, probed: bool) -> Estimate:
    """Its weights. A head that is the token embeddings may need the file where others are probed without."""
    stage = encoding(made)
    tied = not any(op.name == "output.weight" for op in made.kept)
    work = f"{figures.size(stage.amount)} to copy"
    if stage.kind != COPY:
        work = f"{figures.count(stage.amount)} weights to encode"
    return Estimate(work, (stage,), 0 if probed and not tied else made.total_bytes)


def _of_tasks(wanted: Wanted) -> Iterator[Estimate]:
    for file in wanted.tasks:
        count = f"{wanted.n_tasks:,} tasks" if wanted.n_tasks else f"all tasks of {file.name}"
        yield Estimate(count, (Stage(START), Stage(f"{TASK} {task_kind(file)}", wanted.n_tasks or math.nan)))
    if wanted.speed:
        yield Estimate("tests of speed", (Stage(START), Stage(BENCH, SPEED_REPETITIONS * len(SPEED_TESTS))))


def _together(parts: Sequence[Estimate], folder: Path) -> Estimate:
    """One after the other: what is written stays to the end, memory is given back."""
    stages = tuple(stage for part in parts for stage in part.stages)
    disk, memory = sum(part.disk for part in parts), max((part.memory for part in parts), default=0)
    return Estimate(", ".join(part.work for part in parts), stages, disk, folder, memory)


def of_scan(model: Model, job: PruneScanJob, engine: Engine, count: int, order: str) -> Estimate:
    """count: of layers to choose, in this order; 0: the job's sets. Raises SurgeonError."""
    chunks = Chunks.of(Path(job.text), job.n_ctx, job.n_chunks)
    sets, rounds = scan_sets(len(job.layer_sets), count, order)
    kind = HEALED_SCAN if job.n_fit else SCAN
    stages = (Stage(START, rounds), Stage(kind, (sets + rounds) * chunks.tokens, job.n_ctx))
    streams, sums = _of_repairs(model, job, chunks) if job.n_fit else (0, 0)
    memory = engine_memory(model, model.file.nbytes, chunks, alone=True) + sums
    folder, on_card = Path(tempfile.gettempdir()), engine.n_gpu_layers != 0
    return Estimate(chunks.words(sets + rounds), stages, _base_bytes(model, chunks) + streams, folder, memory, on_card)


def _of_repairs(model: Model, job: PruneScanJob, measured: Chunks) -> tuple[int, int]:
    """Bytes on the disk: three streams of every layer and its output matrices, float32; of memory: sums of a fit."""
    there = Chunks.of(Path(job.text), job.n_ctx)
    columns, width = _hparam(model, "feed_forward_length"), _hparam(model, "embedding_length")
    tokens = min(job.n_fit, max(0, there.count - measured.count)) * job.n_ctx
    outputs = sum(one.n_elements for one in model.tensors if one.short in ("attn_output", "ffn_down"))
    return 4 * (len(model.layers) * tokens * (columns + 2 * width) + outputs), 5 * columns * (columns + width) * 8


def scan_sets(layers: int, count: int, order: str) -> tuple[int, int]:
    """How many sets of layers are measured, and in how many rounds; of pairs about as many."""
    if not count:
        return layers, 1
    if order == "single":
        return layers + 1, 2
    if order == "greedy":
        return sum(layers - gone for gone in range(count)), count
    rounds = -(-count // 2)
    return rounds * (layers - 1), rounds


def of_fit(sensitivities: Sensitivities, cache: Path, weights: int) -> Estimate:
    """Of what is not measured yet. weights: `weights_left`, the same for all texts. Raises SurgeonError."""
    prober, text = sensitivities.prober, sensitivities.text
    model = prober.model
    chunks = Chunks.of(text.path, text.n_ctx, text.n_chunks)
    probes = sensitivities.probes_left()
    stages, disk = [Stage(sensitivities.errors_kind, weights)] if weights else [], 0
    wanted = Wanted(divergence=True, text=text.path, n_ctx=text.n_ctx, n_chunks=text.n_chunks)
    base = 0 if not probes or _is_made(model, wanted, prober.engine, cache) else 1
    if base:
        stages += [Stage(START), Stage(BASE, chunks.tokens, chunks.n_ctx)]
        disk = _base_bytes(model, chunks)
    if probes:
        stages += [Stage(START), Stage(sensitivities.probe_kind, probes * chunks.tokens, chunks.n_ctx)]
    # The probe of everything exchanges all weights for about half their bytes, made here and held there.
    memory = engine_memory(model, 2 * model.file.nbytes, chunks)
    on_card = prober.engine.n_gpu_layers != 0
    work = [chunks.words(probes + base)] if probes else []
    work += [f"{figures.count(weights)} weights to encode"] if weights else []
    return Estimate(", ".join(work) or "nothing: all is measured", tuple(stages), disk, cache, memory, on_card)


def of_collection(
    model: Model, job: ImatrixJob, engine: Engine, folder: Path, moments: Account | None = None
) -> Estimate:
    """folder: of the output; moments: what second moments take besides. Raises SurgeonError."""
    chunks = Chunks.of(Path(job.text), job.n_ctx, job.n_chunks)
    if job.n_chunks < 0:
        chunks = replace(chunks, count=max(0, chunks.count - job.first_chunk))
    stages = (Stage(START), Stage(IMATRIX if moments is None else MOMENTS, chunks.tokens, job.n_ctx))
    inside = [one for one in model.tensors if one.layer is not None and len(one.ne) > 1]
    disk = _SUMS_PER_COLUMN * sum(one.ne[0] * math.prod(one.ne[2:]) for one in inside)
    memory = engine_memory(model, model.file.nbytes, chunks, every_row=True)
    if moments is not None:
        disk, memory = disk + moments.disk, memory + moments.memory
    return Estimate(chunks.words(), stages, disk, folder, memory, engine.n_gpu_layers != 0)


def of_heal(run: HealRun) -> Estimate:
    """Raises SurgeonError."""
    request, cost = run.request, run.cost()
    stages, disk = [Stage(START), Stage(HEAL, cost.flop)], cost.disk
    for text in request.held_out:
        chunks = Chunks.of(text, request.n_ctx, request.held_out_chunks)
        wanted = Wanted(divergence=True, text=text, n_ctx=request.n_ctx, n_chunks=request.held_out_chunks)
        if not _is_made(request.model, wanted, run.engine, run.cache):
            stages += [Stage(START), Stage(BASE, chunks.tokens, chunks.n_ctx)]
            disk += _base_bytes(request.model, chunks)
        stages += [Stage(START, 2), Stage(DIVERGENCE, 2 * chunks.tokens, chunks.n_ctx)]
    if request.held_out:
        plan = Plan(pruned=request.pruned, know_risks=request.know_risks)
        disk += resolve(request.model, plan).total_bytes
    work = f"up to {cost.tokens:,} tokens, {cost.tokens / cost.columns:.0f} a column"
    return Estimate(work, tuple(stages), disk, run.cache, cost.memory)


def _base_bytes(model: Model, chunks: Chunks) -> int:
    return estimated_bytes(n_vocab(model), chunks.n_ctx, chunks.count)


def _is_made(model: Model, wanted: Wanted, engine: Engine, cache: Path) -> bool:
    """Whether the unchanged model's log-probabilities are in the cache. Of a text that is long to read: no."""
    text = wanted.text
    if text is None or not text.is_file() or text.stat().st_size > _HASHED:
        return False
    label = find_libraries(engine.library).label
    return _base_path(
        model.file.paths[0], text, text.stat().st_mtime_ns, wanted.n_ctx, wanted.n_chunks, label, cache
    ).is_file()


@lru_cache(64)
def _base_path(source: Path, text: Path, _changed: int, n_ctx: int, n_chunks: int, label: str, cache: Path) -> Path:
    return Base(source, text, n_ctx, n_chunks, label, cache).path
