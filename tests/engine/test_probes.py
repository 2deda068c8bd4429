"""Weights of a loaded model exchanged: the figures of a file that holds them, and the old ones afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from engine_helpers import ONE_THREAD, Base, figures

from surgeon.engine.client import EngineRun
from surgeon.engine.errors import EngineDied, EngineError
from surgeon.engine.protocol import DivergenceJob, Evaluate, Probed, ProbeJob, Started, Step, Swap
from surgeon.gguf.file import open_gguf
from surgeon.imatrix.files import load_imatrix
from surgeon.imatrix.imatrix import Imatrix
from surgeon.measure.probing import Place, Prober
from surgeon.measure.progress import Standing
from surgeon.model.model import load_model
from surgeon.moments.moments import Moments
from surgeon.plan.plan import Plan, TypeRule
from surgeon.resolve.resolve import Resolution, resolve
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


def written(source: Path, plan: Plan, imatrix: Imatrix | None, out: Path, moments: Moments | None = None) -> None:
    """The plan's file."""
    model = load_model(source)
    with model.file:
        list(write(resolve(model, plan, imatrix, moments), imatrix, out, WriteOptions(), threading.Event()))


def swaps_of(source: Path, plan: Plan, imatrix: Imatrix | None, moments: Moments | None = None) -> list[Swap]:
    model = load_model(source)
    with model.file:
        return Prober(model, imatrix, ONE_THREAD, moments).swaps(resolve(model, plan, imatrix, moments))


class OfText(NamedTuple):
    """What a Prober asks of a saved base."""

    path: Path
    n_chunks: int = -1


def probed(prober: Prober, base: Base, plans: dict[str, Resolution]) -> list[tuple[str, dict[str, Any]]]:
    items = prober.probe(OfText(base.path), plans, "probes", Place())
    return [item for item in items if not isinstance(item, Standing)]


def killed(prober: Prober) -> int:
    """The pid of the child that was killed."""
    assert prober.run is not None
    assert prober.run.process is not None
    os.kill(prober.run.process.pid, signal.SIGKILL)
    return prober.run.process.pid


def alike(figures_: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures_.items() if name not in ("unused", "inexact")}


def test_a_probe_gives_every_figure_of_the_file_and_leaves_nothing_behind(
    demo_model: Path, demo_imatrix: Path, base: Base, tmp_path: Path
) -> None:
    """With types that the CPU back end packs (Q4_K, IQ4_NL) and such that it does not."""
    plan = Plan(
        "Q4_K_M", rules=(TypeRule("ffn_gate", "IQ4_NL"), TypeRule("attn_v", "Q8_0"), TypeRule("attn_q", "Q3_K"))
    )
    imatrix, out = load_imatrix(demo_imatrix), tmp_path / "out.gguf"
    written(demo_model, plan, imatrix, out)
    swaps = swaps_of(demo_model, plan, imatrix)
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
    plan = Plan("Q2_K", pure=True, allow_requantize=True)
    written(packed, plan, imatrix, out)
    swaps = swaps_of(packed, plan, imatrix)
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


def test_what_is_exchanged_are_the_bytes_of_the_file(
    demo_model: Path, demo_imatrix: Path, demo_moments: Moments, tmp_path: Path
) -> None:
    """Also with the feedback encoder, token embeddings that only it weighs, and two types of one input."""
    imatrix, out = load_imatrix(demo_imatrix), tmp_path / "out.gguf"
    kinds = {"blk.1.attn_q": "Q3_K", "blk.1.attn_k": "IQ4_XS", "blk.2.ffn_down": "Q4_K", "token_embd": "Q2_K"}
    types = {f"{name}.weight": kind for name, kind in kinds.items()}
    plan = Plan(types=tuple(types.items()))
    written(demo_model, plan, imatrix, out, demo_moments)
    with open_gguf(out) as file:
        expected = {info.name: bytes(file.data(info)) for info in file.tensors if info.name in types}
    found = swaps_of(demo_model, plan, imatrix, demo_moments)
    assert {one.name: one.arrays["data"].tobytes() for one in found} == expected
    assert all(one.arrays["data"].tobytes() != expected[one.name] for one in swaps_of(demo_model, plan, imatrix))


def test_a_child_that_dies_is_started_again_and_goes_on(demo_model: Path, demo_imatrix: Path, base: Base) -> None:
    model, imatrix = load_model(demo_model), load_imatrix(demo_imatrix)
    with model.file:
        prober = Prober(model, imatrix, ONE_THREAD)
        plans = {kind: resolve(model, Plan(kind, pure=True), imatrix) for kind in ("Q4_K", "Q5_K", "Q2_K")}
        expected = dict(probed(prober, base, plans))
        found, kills = {}, []
        for item in prober.probe(OfText(base.path), plans, "probes", Place()):
            if isinstance(item, Standing):
                if item.note == "Q5_K" and not kills:
                    kills.append(killed(prober))
            else:
                found[item[0]] = item[1]
    assert kills
    assert found == expected


def test_a_child_that_dies_at_the_same_probe_again_is_an_error(
    demo_model: Path, demo_imatrix: Path, base: Base
) -> None:
    model, imatrix = load_model(demo_model), load_imatrix(demo_imatrix)
    with model.file:
        prober = Prober(model, imatrix, ONE_THREAD)
        plans = {kind: resolve(model, Plan(kind, pure=True), imatrix) for kind in ("Q4_K", "Q2_K")}
        kills, done = [], []

        def kill_always() -> None:
            for item in prober.probe(OfText(base.path), plans, "probes", Place()):
                if not isinstance(item, Standing):
                    done.append(item[0])
                elif item.note == "Q2_K":
                    kills.append(killed(prober))

        def killed_twice() -> str:
            """What is said; on a busy machine a child may have answered before the signal, then once more."""
            for _ in range(5):
                kills.clear()
                done.clear()
                try:
                    kill_always()
                except EngineDied as error:
                    return str(error)
            return "it lived"

        assert "SIGKILL" in killed_twice()
    assert len(set(kills)) == 2, "the first child and the one after it"
    assert done == ["Q4_K"]
