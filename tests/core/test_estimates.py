"""What a run will take, said before it begins: each figure against one that was come to another way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from surgeon.engine.child.evaluation.base_file import record_length
from surgeon.engine.protocol import Engine, ImatrixJob, Message, PruneScanJob, Started, Step
from surgeon.errors import SurgeonError
from surgeon.measure import estimate as estimates
from surgeon.measure import speeds as speeds_module
from surgeon.measure.base_cache import Base
from surgeon.measure.estimate import (
    Chunks,
    Estimate,
    engine_memory,
    free_bytes,
    of_collection,
    of_evaluation,
    of_fit,
    of_heal,
    of_scan,
    scan_sets,
)
from surgeon.measure.evaluation import Subject, Wanted
from surgeon.measure.fitting.sensitivities import EVERYTHING, Sensitivities
from surgeon.measure.healing.heal_run import HealRequest, HealRun
from surgeon.measure.probing import Prober, Text
from surgeon.measure.scans.prune_choice import candidates
from surgeon.measure.speeds import BASE, DIVERGENCE, PROBE, SCAN, START, Speeds, Stage, encoding, timed
from surgeon.model.model import Model, load_model
from surgeon.moments.account import reckon
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve

LABEL = "a llama.cpp"


@pytest.fixture(autouse=True)
def _one_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A llama.cpp by name, so that nothing here needs one; state of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for module in ("surgeon.measure.estimate", "surgeon.measure.speeds", "surgeon.measure.probing"):
        monkeypatch.setattr(f"{module}.find_libraries", lambda directory: SimpleNamespace(label=LABEL))


@pytest.fixture
def model(demo_model: Path) -> Iterator[Model]:
    """novels-12M: 12 layers, d = 256, f = 768, 2 heads of keys with 64 values each."""
    model = load_model(demo_model)
    with model.file:
        yield model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("word " * 8000)
    return path


@pytest.fixture
def speeds(model: Model) -> Speeds:
    return Speeds.of(model.file.path, Engine(threads=2))


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(speeds_module.time, "monotonic", lambda: self.now)


# --- speeds


def test_a_speed_is_that_of_this_model_machine_and_kind_of_work(speeds: Speeds, model: Model) -> None:
    stages = [Stage(START, 2), Stage(BASE, 4096, 512)]
    assert speeds.seconds(stages) is None
    speeds.keep(Stage(START), 1.5)
    assert speeds.seconds(stages) is None, "one kind of work is unknown"
    speeds.keep(Stage(BASE, 1000, 512), 2.0)
    assert speeds.seconds(stages) == pytest.approx(2 * 1.5 + 4096 / 500)
    assert speeds.seconds([Stage(DIVERGENCE, 1, 512)]) is None
    assert speeds.seconds([Stage(BASE, math.nan, 512)]) is None
    assert Speeds.of(model.file.path, Engine(threads=4)).seconds(stages) is None
    assert Speeds.of(model.file.path, Engine(threads=2)).seconds(stages) == pytest.approx(3 + 8.192)


def test_the_speed_of_chunks_nearly_as_long_counts_and_the_newest(speeds: Speeds) -> None:
    speeds.keep(Stage(BASE, 1000, 512), 1.0)
    speeds.keep(Stage(BASE, 500, 4096), 1.0)
    assert speeds.seconds([Stage(BASE, 1000, 1024)]) == pytest.approx(1)
    assert speeds.seconds([Stage(BASE, 1000, 8192)]) == pytest.approx(2)
    speeds.keep(Stage(BASE, 4000, 512), 1.0)
    assert speeds.seconds([Stage(BASE, 1000, 512)]) == pytest.approx(0.25)


@pytest.mark.parametrize("content", ["", "[half", "[]", '{"%s": 3}', '{"%s": {"base": {"x": 1, "512": "fast"}}}'])
def test_a_damaged_file_of_speeds_says_nothing_and_is_written_anew(speeds: Speeds, content: str) -> None:
    assert speeds.path is not None
    speeds.path.parent.mkdir(parents=True)
    speeds.path.write_text(content.replace("%s", speeds.setup))
    assert speeds.seconds([Stage(BASE, 100, 512)]) is None
    speeds.keep(Stage(BASE, 100, 512), 1.0)
    assert speeds.seconds([Stage(BASE, 100, 512)]) == pytest.approx(1)
    assert json.loads(speeds.path.read_text())[speeds.setup]["base"] == {"512": 100.0}


def test_without_a_state_folder_runs_go_on(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    def none() -> Path:
        raise SurgeonError("no folder")

    monkeypatch.setattr(speeds_module, "state_folder", none)
    speeds = Speeds.of(model.file.path, Engine())
    speeds.keep(Stage(BASE, 100, 512), 1.0)
    assert speeds.seconds([Stage(BASE, 100, 512)]) is None


def run_of(clock: Clock, steps: int, seconds: float, first: int = 0) -> Iterator[Message]:
    clock.now += 3
    yield Started(10_000, 8, 512)
    for step in range(first, first + steps):
        clock.now += seconds
        yield Step(step + 1, 8)
    clock.now += 50  # what comes after the last step is not its work


def test_a_run_is_timed_from_its_start_to_its_last_step(speeds: Speeds, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert len(list(timed(run_of(clock, 8, 0.25), speeds, BASE, 512))) == 9
    assert speeds.seconds([Stage(START)]) == pytest.approx(3)
    assert speeds.seconds([Stage(BASE, 8 * 512, 512)]) == pytest.approx(2)


def test_a_stopped_and_a_resumed_run_are_timed_and_a_blink_is_not(
    speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    stopped = timed(run_of(clock, 8, 1.0), speeds, BASE, 512)
    for _ in range(4):
        next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert speeds.seconds([Stage(BASE, 512, 512)]) == pytest.approx(1)
    list(timed(run_of(clock, 2, 3.0, first=6), speeds, SCAN, 512, done=6))
    assert speeds.seconds([Stage(SCAN, 512, 512)]) == pytest.approx(3)
    list(timed(run_of(clock, 8, 0.01), speeds, BASE, 512))
    assert speeds.seconds([Stage(BASE, 512, 512)]) == pytest.approx(1), "the short run has not counted"


# --- how much


def test_chunks_are_exact_only_where_the_text_surely_has_them(text: Path) -> None:
    assert text.stat().st_size == 40_000
    assert Chunks.of(text, 512, 8) == Chunks(8, 512, True)
    assert Chunks.of(text, 512, 8).words(3) == "12,288 tokens"
    assert Chunks.of(text, 512, 12) == Chunks(12, 512, False)
    whole = Chunks.of(text, 512)
    assert whole == Chunks(22, 512, False)  # 40,000 / 3.5 / 512
    assert whole.words() == "some 11,000 tokens"
    assert Chunks.of(text, 512, 1000) == whole
    with pytest.raises(SurgeonError, match="cannot be read"):
        Chunks.of(text.with_name("none.txt"), 512)


def test_memory_is_weights_keys_logits_and_the_graph(model: Model) -> None:
    vocabulary = model.file.kv["tokenizer.ggml.tokens"].count
    keys = 12 * 2 * (2 * 64) * 2  # layers, keys and values, float16
    graph = 4 * 512 * (max(vocabulary, 3 * 768) + 6 * 256)
    rest = 64 << 20
    four = engine_memory(model, 1000, Chunks(8, 512, True))
    assert four == 1000 + keys * 2048 + 5 * 4 * vocabulary * 1024 + graph + rest
    one = engine_memory(model, 0, Chunks(8, 512, True), alone=True)
    assert one == keys * 512 + 5 * 4 * vocabulary * 512 + graph + rest
    assert engine_memory(model, 0, Chunks(1, 512, True), every_row=True) == one


def test_an_unchanged_model_is_run_once_and_its_base_kept(model: Model, text: Path, tmp_path: Path) -> None:
    subject = Subject("x", model.file.path, model.file.nbytes, resolution=resolve(model, Plan()))
    wanted = Wanted(divergence=True, text=text, n_ctx=512, n_chunks=4)
    found = of_evaluation(subject, wanted, model, Engine(), tmp_path)
    assert found.stages == (Stage(START), Stage(BASE, 2048, 512))
    vocabulary = model.file.kv["tokenizer.ggml.tokens"].count
    assert found.disk == 4 * 255 * 2 * record_length(vocabulary)
    assert found.work == "2,048 tokens"
    assert found.folder == tmp_path


def test_a_plan_is_run_beside_its_base_which_is_made_once(model: Model, text: Path, tmp_path: Path) -> None:
    made = resolve(model, Plan(file_type="Q4_K_M"))
    subject = Subject("x", model.file.path, model.file.nbytes, resolution=made)
    wanted = Wanted(divergence=True, text=text, n_ctx=512, n_chunks=4)
    found = of_evaluation(subject, wanted, model, Engine(), tmp_path)
    runs = [stage for stage in found.stages if stage.amount == 2048]
    assert [stage.kind for stage in runs] == [BASE, DIVERGENCE]
    weights = sum(tensor.n_elements for tensor in model.tensors if len(tensor.ne) == 2)
    assert found.stages[-1] == Stage("encode Q4_K_M", weights) == encoding(made)
    assert found.work.startswith("4,096 tokens, 11.5 M weights")

    base = Base(model.file.path, text, 512, 4, LABEL, tmp_path).path
    base.parent.mkdir()
    base.touch()
    again = of_evaluation(subject, wanted, model, Engine(), tmp_path)
    assert [stage.kind for stage in again.stages] == [START, DIVERGENCE, "encode Q4_K_M"]
    assert again.disk == 0, "the plan is measured without its file"
    assert again.on_disk()[0].startswith("nothing on disk, ")


def test_a_pruned_plan_takes_its_file_on_the_disk(model: Model, text: Path, tmp_path: Path) -> None:
    made = resolve(model, Plan(pruned=frozenset({9})))
    subject = Subject("x", model.file.path, model.file.nbytes, resolution=made)
    wanted = Wanted(perplexity=True, text=text, n_ctx=512, n_chunks=4)
    found = of_evaluation(subject, wanted, model, Engine(), tmp_path)
    assert found.disk == made.total_bytes
    assert found.stages[-1] == Stage("copy", made.total_bytes)


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (3, 3)])
def test_a_greedy_scan_counts_the_sets_that_the_choice_measures(count: int, rounds: int) -> None:
    chosen = [tuple(range(done)) for done in range(count)]
    assert scan_sets(12, count, "greedy") == (sum(len(candidates("greedy", one, count, 12)) for one in chosen), rounds)
    assert scan_sets(12, 2, "pairs") == (len(candidates("pairs", (), 2, 12)), 1)
    assert scan_sets(12, 2, "single") == (13, 2)
    assert scan_sets(12, 0, "greedy") == (12, 1)


def test_a_scan_makes_its_base_anew_in_every_round(model: Model, text: Path) -> None:
    job = PruneScanJob(str(model.file.path), str(text), [[layer] for layer in range(12)], 512, n_chunks=2)
    plain, two = of_scan(model, job, Engine(), 0, "greedy"), of_scan(model, job, Engine(), 2, "greedy")
    assert plain.stages == (Stage(START, 1), Stage(SCAN, 13 * 1024, 512))
    assert two.stages == (Stage(START, 2), Stage(SCAN, (12 + 11 + 2) * 1024, 512))
    assert two.work == "25,600 tokens"
    healed = PruneScanJob(**{**vars(job), "n_fit": 5})
    streams = 12 * 5 * 512 * (768 + 2 * 256) * 4  # of every layer: what ffn_down reads, two streams; float32
    outputs = 12 * 256 * (256 + 768) * 4
    on_card = of_scan(model, job, Engine(n_gpu_layers=99), 0, "greedy")
    assert on_card.in_memory()[0].endswith(", in part the card's")
    assert of_scan(model, healed, Engine(), 2, "greedy").disk - two.disk == streams + outputs


def test_a_fit_counts_what_is_not_measured_yet(model: Model, text: Path, tmp_path: Path) -> None:
    work = Sensitivities(Prober(model, None, Engine()), Text(text, 512, 2))
    found = of_fit(work, tmp_path, work.weights_left())
    assert [stage.kind for stage in found.stages] == ["errors", START, BASE, START, PROBE]
    probes = 2 * len(work.groups) + 1
    assert found.stages[-1].amount == probes * 1024
    assert found.work.startswith(f"{(probes + 1) * 1024:,} tokens, ")

    work.probes = {label: (0.1, 0.01) for label in work._wanted_probes() if label != EVERYTHING}
    work._keep_probes()
    assert of_fit(work, tmp_path, work.weights_left()).stages[-1].amount == 1024
    work.probes = {EVERYTHING: (0.1, 0.01)}  # as another run has it
    work._keep_probes()
    done = of_fit(work, tmp_path, work.weights_left())
    assert [stage.kind for stage in done.stages] == ["errors"]
    assert done.disk == 0


def test_a_collection_with_second_moments_takes_their_account_too(model: Model, text: Path, tmp_path: Path) -> None:
    job = ImatrixJob(str(model.file.path), str(text), 512, n_chunks=3)
    account = reckon(model)
    plain, with_moments = (
        of_collection(model, job, Engine(), tmp_path),
        of_collection(model, job, Engine(), tmp_path, account),
    )
    assert with_moments.memory - plain.memory == account.memory
    assert with_moments.disk - plain.disk == account.disk
    assert [plain.stages[-1].kind, with_moments.stages[-1].kind] == ["imatrix", "moments"]
    assert plain.stages[-1].amount == 1536
    rest = ImatrixJob(str(model.file.path), str(text), 512, first_chunk=20)
    assert of_collection(model, rest, Engine(), tmp_path).stages[-1].amount == (22 - 20) * 512


def test_healing_adds_what_the_held_out_text_takes(model: Model, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("lamp " * 8000)
    request = HealRequest(model, frozenset({9}), (text,), tmp_path / "out.gguf", n_ctx=64)
    plain = of_heal(HealRun(request, Engine(), tmp_path))
    assert plain.stages[-1].kind == "heal"
    with_text = HealRequest(model, frozenset({9}), (text,), tmp_path / "out.gguf", (other,), 4, n_ctx=64)
    held_out = of_heal(HealRun(with_text, Engine(), tmp_path))
    assert [(stage.kind, stage.amount) for stage in held_out.stages[2:]] == [
        (START, 1), (BASE, 256), (START, 2), (DIVERGENCE, 512),
    ]  # fmt: skip
    assert held_out.disk > plain.disk + resolve(model, Plan(pruned=frozenset({9}))).total_bytes


# --- words


def one(disk: int = 0, memory: int = 0, folder: Path = Path("/")) -> Estimate:
    return Estimate("4,096 tokens", (Stage(BASE, 4096, 512),), disk, folder, memory)


def test_time_is_said_where_it_is_known(speeds: Speeds) -> None:
    assert one().time(speeds) == "time unknown until the first chunk; 4,096 tokens"
    speeds.keep(Stage(BASE, 4096, 512), 83)
    assert one().time(speeds) == "about 1:23 for 4,096 tokens"


def test_what_does_not_fit_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speeds: Speeds) -> None:
    monkeypatch.setattr(estimates, "free_bytes", lambda folder: 10**9)
    monkeypatch.setattr(estimates, "available_memory", lambda: 1 << 30)
    assert one(10**9, 1 << 30).on_disk() == ("disk 1.00 GB of 1.00 GB free", True)
    assert one(10**9, 1 << 30).in_memory() == ("memory 1.00 GiB of 1.00 GiB free", True)
    assert one(2 * 10**9).on_disk() == ("disk 2.00 GB, only 1.00 GB free", False)
    assert one(memory=3 << 30).in_memory() == ("memory 3.00 GiB, only 1.00 GiB free", False)
    assert one(10**6, 1 << 20).line(speeds) == (
        "time unknown until the first chunk; 4,096 tokens; disk 1.00 MB of 1.00 GB free, "
        "memory 1.00 MiB of 1.00 GiB free"
    )


def test_free_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.05)
