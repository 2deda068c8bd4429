"""Every message that crosses the pipe between surgeon and the engine's child process; `frames` puts them on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Message:
    """A dataclass of JSON values; at most one field, `arrays`, holds numpy arrays by name."""


@dataclass(frozen=True)
class Engine(Message):
    """How llama.cpp is to be run. threads below 1: all this process may use; n_gpu_layers: layers to offload."""

    library: str | None = None
    threads: int = 0
    n_gpu_layers: int = 0


# Jobs: the parent sends an Engine, then one of these; the child answers until Finished or Failed.


@dataclass(frozen=True)
class DevicesJob(Message):
    """What llama.cpp finds on this machine; Finished has `engine` and `devices`, see Binding.device_memory."""


@dataclass(frozen=True)
class CountJob(Message):
    """How a text falls into chunks; Finished has `n_tokens`, `n_chunks` after `first_chunk` of `n_ctx`, and `n_seq` run
    at once. base: count the chunks that are saved there, in the place of a text. No weight is read.
    """

    model: str
    text: str
    n_ctx: int = 512
    n_batch: int = 2048
    first_chunk: int = 0
    n_chunks: int = -1
    parse_special: bool = False
    base: str = ""


@dataclass(frozen=True)
class ImatrixJob(Message):
    """Activations of `model` over `text`. n_chunks < 0: all; first_chunk: how many to leave out at the start.

    moments: where second moments are kept (`raw_moments`), '' for none; moments_from: such a file to begin with;
    moments_block: of the diagonal, 0 for all; moments_halves: 1, or 2 to keep alternate parts of the text apart;
    moments_layers: None for all; moments_head: the head's too, where layers are named.
    done, arrays: chunks that an interrupted run has collected, and the arrays of its last Snapshot. until: the chunk
    before which this run ends, where others collect the rest. run: a digest of the collection, which marks its files.
    """

    model: str
    text: str
    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512
    first_chunk: int = 0
    n_chunks: int = -1
    process_output: bool = False
    parse_special: bool = False
    perplexity: bool = True
    save_every: int = 10
    moments: str = ""
    moments_from: str = ""
    moments_block: int = 0
    moments_halves: int = 2
    moments_layers: list[int] | None = None
    moments_head: bool = True
    done: int = 0
    until: int = -1
    run: str = ""
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True)
class PerplexityJob(Message):
    """Perplexity of `model` over `text`; save_base: write the log-probabilities there; stride > 0: strided windows.

    first, until: only these chunks of the run, each answered by a ChunkSums.
    """

    model: str
    text: str
    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512
    n_chunks: int = -1
    stride: int = 0
    save_base: str | None = None
    first: int = 0
    until: int = -1


@dataclass(frozen=True)
class DivergenceJob(Message):
    """KL divergence of `model` from the saved base; `text`, if given, must give the base's tokens.

    first, until: only these chunks of the run, each answered by a ChunkSums.
    """

    model: str
    base: str
    text: str | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_chunks: int = -1
    first: int = 0
    until: int = -1


@dataclass(frozen=True)
class TaskJob(Message):
    """task: hellaswag, winogrande or multiple-choice; n_tasks 0: all."""

    model: str
    task: str
    file: str
    n_tasks: int = 0
    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512


@dataclass(frozen=True)
class EmbeddingJob(Message):
    """The embedding of each line of `text`, cut to n_ctx tokens; blank lines are left out. n_texts < 0: all lines.

    pooling: llama.cpp's number, below zero as the model says. Answered by Embedded.
    """

    model: str
    text: str
    n_ctx: int = 512
    n_texts: int = -1
    pooling: int = -1


@dataclass(frozen=True)
class BenchJob(Message):
    """tests: (prompt tokens, generated tokens) each; depth: tokens already in the cache."""

    model: str
    tests: list[list[int]]
    repetitions: int = 5
    depth: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512


@dataclass(frozen=True)
class PruneScanJob(Message):
    """KL divergence with each set of layers left out, against the whole model; base: where its records may be put, or
    lie already (base_is_made). more: further sets follow, each a LeaveOut among the parent's requests.

    repairs: HealLayers as dicts, of every layer; then each gap's ffn_down is refitted, on n_fit chunks that are not
    measured, before the gap is measured. folder: for their streams.
    """

    model: str
    text: str
    layer_sets: list[list[int]]
    n_ctx: int = 512
    n_ubatch: int = 512
    n_chunks: int = 8
    base: str = ""
    repairs: list[dict[str, Any]] = field(default_factory=list)
    n_fit: int = 0
    folder: str = ""
    base_is_made: bool = False
    more: bool = False


@dataclass(frozen=True)
class HealLayer:
    """One layer of the walk, in `file` as its layer `index`. number: in the unpruned model; epsilon: of its norms.

    branches: `attn_output`, `ffn_down` -> names of .npy files, float32, of its `weight` [d, f], and its `bias` and the
    `gain` of the norm behind it where there are any; `ffn_down_exps` -> its `weight` [experts, d, f], which is changed.
    """

    number: int
    file: str
    index: int
    pruned: bool
    epsilon: float
    branches: dict[str, dict[str, str]]


FEWEST_TOKENS = 4.0  # a column: a fit of fewer is no better than chance on another text


@dataclass(frozen=True)
class HealJob(Message):
    """Refit matrices of `model` without its pruned layers, over `texts`.

    layers: HealLayers as dicts, in order, from the one before the first pruned layer to the last; folder: for streams;
    width: d_model; columns: of the widest ffn_down.
    """

    model: str
    texts: list[str]
    layers: list[dict[str, Any]]
    folder: str
    width: int
    columns: int
    tokens_per_column: float = 30.0
    n_ctx: int = 512
    before_only: bool = False


@dataclass(frozen=True)
class ExpertScanJob(Message):
    """KL divergence with experts silenced, against the whole model.

    sets: per measurement layer (as text, JSON has no other keys) -> experts; base: where its records may be put, or lie
    already (base_is_made). more: further sets follow, each a Silence among the parent's requests.
    """

    model: str
    text: str
    sets: list[dict[str, list[int]]]
    n_ctx: int = 512
    n_ubatch: int = 512
    n_chunks: int = 8
    base: str = ""
    base_is_made: bool = False
    more: bool = False


@dataclass(frozen=True)
class ProbeJob(Message):
    """KL divergence from the saved base with some weights exchanged, as often as the parent asks.

    After Started the parent sends Swap messages and then an Evaluate, and again; each Evaluate is answered by Probed.
    """

    model: str
    base: str
    n_batch: int = 2048
    n_ubatch: int = 512
    n_chunks: int = -1


@dataclass(frozen=True)
class MemoryJob(Message):
    """Lay out a context without reading the model; the sizes of its buffers go to the log.

    n_ctx: tokens of all n_seq sequences together; cache_type: ggml's number.
    """

    model: str
    n_ctx: int
    n_seq: int = 1
    n_ubatch: int = 512
    cache_type: int = 1


# Requests of the parent while a ProbeJob, or a scan with `more`, runs


@dataclass(frozen=True)
class Swap(Message):
    """From the next Evaluate to its end, the weight `name` is `data`: uint8 blocks of ggml's type number `type`."""

    name: str
    type: int
    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class LeaveOut(Message):
    """Measure with these layers left out (PruneScanJob); answered by a LayerDamage."""

    layers: list[int]


@dataclass(frozen=True)
class Silence(Message):
    """Measure with these experts silenced (ExpertScanJob); answered by an ExpertDamage."""

    sets: dict[str, list[int]]


@dataclass(frozen=True)
class Evaluate(Message):
    """Measure with what was swapped so far, then take it back.

    exact: measure only if the figures are those of a file to the last digit; else Probed has nothing but `inexact`.
    """

    label: str
    exact: bool = False


# Answers


@dataclass(frozen=True)
class Loaded(Message):
    """The model is ready. `engine` names the llama.cpp, `description` the model in its words."""

    engine: str
    devices: list[str]
    description: str
    n_params: int
    nbytes: int
    n_vocab: int
    n_layer: int
    n_ctx_train: int
    threads: int


@dataclass(frozen=True)
class Started(Message):
    """The text is read: n_tokens in all, `total` units of work (chunks, tasks, repetitions)."""

    n_tokens: int
    total: int
    n_ctx: int


@dataclass(frozen=True)
class Step(Message):
    """done of total units; values: running figures (`ppl`, `mean_kld`, `acc_norm`, ...)."""

    done: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Within(Message):
    """Between two Steps of a decode that takes long: `done` counts its finished layers as parts of a unit."""

    done: float
    total: int


@dataclass(frozen=True)
class Snapshot(Message):
    """The sums so far, as they are: `squares:W` float32[n_mat, cols], `sum:W` float64[n_mat, cols], `count:W` int64,
    `layers` float64[n_layer, 5], `ppl` float64[3] (scored tokens, Σ −log p, Σ of squares) and, where there are any,
    `experts` float64[3, n_layer, n_expert] (calls, weights, weight × |output|). chunks: collected so far.
    """

    chunks: int
    n_ctx: int
    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class ChunkSums(Message):
    """What one chunk adds to the figures of a text: `sums` of a PerplexityJob, the columns of a DivergenceJob."""

    chunk: int
    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Embedded(Message):
    """Of an EmbeddingJob. arrays: `rows` float32[lines, width]."""

    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class LayerDamage(Message):
    """One layer set measured."""

    layers: list[int]
    mean_kld: float
    ppl: float
    same_top: float


@dataclass(frozen=True)
class ExpertDamage(Message):
    """One set of experts measured. number: its place in the job; mean_kld_error: standard error."""

    number: int
    mean_kld: float
    mean_kld_error: float
    ppl: float
    same_top: float


@dataclass(frozen=True)
class Probed(Message):
    """One Evaluate measured: the figures of a whole run, keys as in Finished.

    Besides, `unused`: weights that the graph does not read; `inexact`: weights that llama.cpp would lay out otherwise
    if it read them from a file.
    """

    label: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HealedMatrix(Message):
    """One matrix refitted, or kept because nothing did better on tokens that were not fitted.

    layer: number in the unpruned model; kind: `attn_output`, `ffn_down` or `ffn_down_exps`; method: `kept`, `ridge`,
    `gain` or `refit`; before, after: squared error of the branch relative to what it shall add, 0 where it is not
    known. arrays: `weight`, `gain`, where new; file: of experts, the .npy of their new weights; note: how many of the
    experts are refitted, or why none.
    """

    layer: int
    kind: str
    method: str
    penalty: float
    shrink: float
    before: float
    after: float
    arrays: dict[str, NDArray[np.generic]]
    file: str = ""
    note: str = ""


@dataclass(frozen=True)
class Finished(Message):
    """The end: the figures of the whole run, keys as in the commands' --json."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat(Message):
    """Sent every few seconds whatever the job does: the child is alive."""


@dataclass(frozen=True)
class Failed(Message):
    """The end: one line for the user. missing: no usable llama.cpp; full: the disk is."""

    message: str
    missing: bool = False
    full: bool = False


KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        Engine, DevicesJob, CountJob, ImatrixJob, PerplexityJob, DivergenceJob, TaskJob, BenchJob, PruneScanJob,
        ExpertScanJob, ProbeJob, MemoryJob, HealJob, ChunkSums, EmbeddingJob, Embedded,
        Swap, Evaluate, LeaveOut, Silence, Within,
        Loaded, Started, Step, Snapshot, LayerDamage, ExpertDamage, Probed, HealedMatrix, Finished, Failed, Beat,
    )
}  # fmt: skip
Job = (
    CountJob
    | ImatrixJob
    | PerplexityJob
    | DivergenceJob
    | TaskJob
    | EmbeddingJob
    | BenchJob
    | PruneScanJob
    | ExpertScanJob
    | ProbeJob
    | MemoryJob
    | HealJob
)
Request = Job | DevicesJob
