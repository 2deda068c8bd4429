"""Two runs at once add to one file of figures: neither loses what the other measured."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from surgeon.engine.protocol import Engine, ExpertDamage, ExpertScanJob, LayerDamage, PruneScanJob
from surgeon.json_text import json_text, read_json
from surgeon.measure.kept_figures import alone_in
from surgeon.measure.scans.expert_scan import Cut, ExpertScan
from surgeon.measure.scans.prune_scan import PruneScan
from surgeon.measure.speeds import Speeds, Stage


def damage(*layers: int, kld: float = 0.1) -> LayerDamage:
    return LayerDamage(list(layers), kld, 10.0, 90.0)


@pytest.fixture
def state(demo_model: Path, tmp_path: Path) -> Path:
    """Where a scan's figures go; the model and the text lie beside it."""
    (tmp_path / "model.gguf").symlink_to(demo_model)
    (tmp_path / "text.txt").write_text("no run of the engine reads it")
    return tmp_path / "scan.json"


def inputs(state: Path) -> tuple[str, str]:
    return str(state.with_name("model.gguf")), str(state.with_name("text.txt"))


def prune_scan(state: Path, *found: LayerDamage, restart: bool = False) -> PruneScan:
    """A scan that measures `found`."""
    sets = [one.layers for one in found]
    scan = PruneScan(Engine(), PruneScanJob(*inputs(state), layer_sets=sets), state, "model-text")
    scan.elsewhere = lambda _: iter(found)
    if restart:
        scan.forget()
    else:
        scan.load()
    return scan


def test_scans_of_layers_add_to_each_other(state: Path) -> None:
    first, second = prune_scan(state, damage(1)), prune_scan(state, damage(2), damage(3))
    for scan in (second, first):
        list(scan.messages())
    assert sorted(prune_scan(state).damages) == [(1,), (2,), (3,)]


def test_a_scan_begun_anew_keeps_none_of_the_old_figures(state: Path) -> None:
    list(prune_scan(state, damage(1), damage(2)).messages())
    anew = prune_scan(state, damage(1, kld=0.3), restart=True)
    assert sorted(prune_scan(state).damages) == [(1,), (2,)], "nothing is forgotten before there is something new"
    list(prune_scan(state, damage(4)).messages())
    list(anew.messages())
    kept = prune_scan(state).damages
    assert sorted(kept) == [(1,), (4,)], "what another scan has added meanwhile stays"
    assert kept[1,].mean_kld == 0.3


def test_damage_to_the_file_takes_nothing_that_was_measured(state: Path) -> None:
    scan = prune_scan(state, damage(1), damage(2))
    for message in scan.messages():
        if message == damage(1):
            state.write_text("[]")
    assert sorted(prune_scan(state).damages) == [(1,), (2,)]


def test_scans_of_experts_add_to_each_other(state: Path) -> None:
    scans = []
    for expert in (1, 2):
        cut = Cut(25.0, None, {0: frozenset({expert})})
        scan = ExpertScan(Engine(), ExpertScanJob(*inputs(state), []), [cut], state, "model-text")
        found = ExpertDamage(0, 0.1 * expert, 0.01, 10.0, 90.0)
        scan.elsewhere = lambda _, found=found: iter([found])
        scans.append(scan)
    for scan in scans:
        list(scan.messages())
    last = ExpertScan(Engine(), scans[0].job, [], state, "model-text")
    last.load()
    assert last.damages.keys() == {cut.key for scan in scans for cut in scan.cuts}
    assert {label[0] for label in last.labels} == last.damages.keys()


def test_speeds_add_to_each_other(tmp_path: Path) -> None:
    speeds = [Speeds(tmp_path / "speeds.json", "this machine") for _ in range(2)]
    speeds[0].keep(Stage("one", 100.0), 1.0)
    speeds[1].keep(Stage("other", 100.0), 2.0)
    assert speeds[0].seconds([Stage("one", 100.0), Stage("other", 100.0)]) == pytest.approx(3.0)


def _count(path: Path) -> None:
    for _ in range(50):
        with alone_in(path.parent):
            known = read_json(path.read_bytes())["count"] if path.exists() else 0
            path.write_text(json_text({"count": known + 1}))


def test_only_one_process_is_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "count.json"
    runs = [multiprocessing.get_context("spawn").Process(target=_count, args=(path,)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert read_json(path.read_bytes()) == {"count": 150}
