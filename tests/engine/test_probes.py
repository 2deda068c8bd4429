"""Weights of a loaded model exchanged: the figures of a file that holds them, and the old ones afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import ONE_THREAD, Base, figures

import surgeon_kernels
from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import DivergenceJob, Evaluate, Probed, ProbeJob, Started, Step, Swap
from surgeon.fit.encoding import encoded
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.probing import exchanged
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan, TypeRule
from surgeon.resolve.resolve import Resolution, resolve
from surgeon.resolve.tensor_facts import facts_of
from surgeon.write.operation import WriteOptions, write
from surgeon_kernels.formats import FORMATS


def evaluated(run: EngineRun, *swaps: Swap) -> dict[str, float]:
    run.send(*swaps, Evaluate("probe"))
    answers = list(run.until(Probed))
    assert all(isinstance(answer, Step) for answer in answers[:-1])
    last = answers[-1]
    assert isinstance(last, Probed)
    return last.values


@contextlib.contextmanager
def probing(model: Path, base: Base, **options: int) -> Iterator[EngineRun]:
    with EngineRun(ONE_THREAD, ProbeJob(str(model), str(base.path), **options)) as run:
        for _ in run.until(Started):
            pass
        yield run


def written(source: Path, plan: Plan, imatrix: Imatrix, out: Path) -> Resolution:
    """The plan's file, and what was done."""
    model = load_model(source)
    with model.file:
        resolution = resolve(model, plan, imatrix)
        list(write(resolution, imatrix, out, WriteOptions(), threading.Event()))
    return resolution


def swaps_of(source: Path, resolution: Resolution, imatrix: Imatrix) -> list[Swap]:
    model = load_model(source)
    with model.file:
        by_name = facts_of(model).by_name
        return [
            Swap(name, FORMATS[kind].number, {"data": encoded(model, by_name[name], kind, imatrix)})
            for name, kind in exchanged(resolution).items()
        ]


def alike(figures_: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures_.items() if name != "unused"}


def test_a_probe_gives_every_figure_of_the_file_and_leaves_nothing_behind(
    demo_model: Path, demo_imatrix: Path, base: Base, tmp_path: Path
) -> None:
    """With types that the CPU back end packs (Q4_K, IQ4_NL) and such that it does not."""
    plan = Plan(
        "Q4_K_M", rules=(TypeRule("ffn_gate", "IQ4_NL"), TypeRule("attn_v", "Q8_0"), TypeRule("attn_q", "Q3_K"))
    )
    imatrix, out = load_imatrix(demo_imatrix), tmp_path / "out.gguf"
    resolution = written(demo_model, plan, imatrix, out)
    swaps = swaps_of(demo_model, resolution, imatrix)
    expected = figures(DivergenceJob(str(out), str(base.path)))
    with probing(demo_model, base) as run:
        before = evaluated(run)
        found = evaluated(run, *swaps)
        assert evaluated(run) == before
        assert evaluated(run, *swaps) == found
    assert before["mean_kld"] < 1e-5
    assert found["unused"] == []
    assert alike(found) == expected


def test_weights_that_lie_packed_are_exchanged_too(
    demo_model: Path, demo_imatrix: Path, base: Base, tmp_path: Path
) -> None:
    imatrix, packed, out = load_imatrix(demo_imatrix), tmp_path / "packed.gguf", tmp_path / "out.gguf"
    written(demo_model, Plan("Q4_0", pure=True), imatrix, packed)
    resolution = written(packed, Plan("Q2_K", pure=True, allow_requantize=True), imatrix, out)
    swaps = swaps_of(packed, resolution, imatrix)
    expected = figures(DivergenceJob(str(out), str(base.path)))
    with probing(packed, base) as run:
        assert alike(evaluated(run, *swaps)) == expected


def test_one_weight_alone_changes_the_figures_and_chunks_may_be_fewer(demo_model: Path, base: Base) -> None:
    zeros = np.zeros((256, 144), np.uint8)
    with probing(demo_model, base, n_chunks=2) as run:
        found = evaluated(run, Swap("blk.3.attn_q.weight", FORMATS["Q4_K"].number, {"data": zeros}))
    assert found["n_chunks"] == 2
    assert found["mean_kld"] > 1e-3


def test_a_weight_the_graph_does_not_use_is_reported(demo_model: Path, base: Base) -> None:
    with probing(demo_model, base, n_chunks=1) as run:
        found = evaluated(run, Swap("blk.99.attn_q.weight", 12, {"data": np.zeros(144, np.uint8)}))
    assert found["unused"] == ["blk.99.attn_q.weight"]


def test_a_wrong_number_of_bytes_is_refused_with_the_name(demo_model: Path, base: Base) -> None:
    with (
        probing(demo_model, base) as run,
        pytest.raises(EngineError, match=r"blk\.0\.attn_q\.weight: 10 bytes .* expects 36864"),
    ):
        evaluated(run, Swap("blk.0.attn_q.weight", FORMATS["Q4_K"].number, {"data": np.zeros(10, np.uint8)}))


def test_a_child_killed_in_a_probe_is_one_line(demo_model: Path, base: Base) -> None:
    with probing(demo_model, base) as run:
        assert run.process is not None
        run.send(Evaluate("probe"))
        os.kill(run.process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"llama\.cpp ended by SIGKILL"):
            list(run.until(Probed))


def test_a_request_that_is_none_is_refused(demo_model: Path, base: Base) -> None:
    with probing(demo_model, base) as run:
        run.send(Step(1, 2))
        with pytest.raises(EngineError, match="cannot answer Step"):
            list(run.until(Probed))


def test_blocks_are_those_of_the_kernels(demo_model: Path, demo_imatrix: Path) -> None:
    model, imatrix = load_model(demo_model), load_imatrix(demo_imatrix)
    with model.file:
        facts = facts_of(model).by_name["blk.2.ffn_up.weight"]
        stored = np.asarray(model.file.data(facts.tensor.info)).view(np.float16)
        rows = stored.reshape(facts.rows, facts.columns).astype(np.float32)
        blocks = encoded(model, facts, "Q4_K", imatrix)
    np.testing.assert_array_equal(
        blocks, surgeon_kernels.quantize(rows, "Q4_K", imatrix.weights("blk.2.ffn_up.weight"))
    )
