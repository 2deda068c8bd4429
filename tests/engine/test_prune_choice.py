"""Which layers to prune: the order of choosing, and scans that measure what healing leaves."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import TEXT

from surgeon.commands import prune_scan
from surgeon.engine.child.healing.scan_repairs import gaps
from surgeon.engine.protocol import LayerDamage, Message
from surgeon.measure.scans.prune_choice import PruneChoice, candidates


class Told:
    """A scan whose damages are told by a function."""

    def __init__(self, job: object, damage: dict[frozenset[int], float]) -> None:
        self.job, self.damages = job, dict[tuple[int, ...], LayerDamage]()
        self._damage = damage

    def messages(self) -> Iterator[Message]:
        for layers in self.job.layer_sets:  # type: ignore[attr-defined]
            found = sum(value for part, value in self._damage.items() if part <= set(layers))
            self.damages[tuple(layers)] = LayerDamage(layers, found, 1.0, 1.0)
            yield self.damages[tuple(layers)]


def chosen(order: str, count: int, damage: dict[frozenset[int], float], n_layer: int = 5, among: int = 0) -> list[int]:
    from surgeon.engine.protocol import PruneScanJob

    scan = Told(PruneScanJob("", "", []), damage)
    choice = PruneChoice(scan, order, count, n_layer, among)  # type: ignore[arg-type]
    rounds = [choice.round for _ in choice.messages()]
    assert list(dict.fromkeys(rounds)) == list(range(choice.rounds)), "what the progress says"
    return list(choice.chosen)


SINGLY = {frozenset({layer}): value for layer, value in enumerate((9.0, 1.0, 2.0, 3.0, 2.5))}


def test_layers_alone_and_one_after_the_other() -> None:
    together = SINGLY | {frozenset({1, 2}): 5.0}  # the two least are bad together
    assert chosen("single", 2, together) == [1, 2]
    assert chosen("greedy", 2, together) == [1, 4]
    assert chosen("greedy", 3, together, among=3) == [1, 2, 4]


def test_neighbours_two_at_a_time() -> None:
    together = SINGLY | {frozenset({2, 3}): -4.0}
    assert chosen("pairs", 2, together) == [2, 3]
    assert chosen("pairs", 3, together) == [1, 2, 3]


def test_what_may_follow() -> None:
    assert candidates("greedy", (1,), 2, 3) == [[0, 1], [1, 2]]
    assert candidates("pairs", (), 2, 4) == [[0, 1], [1, 2], [2, 3]]
    assert candidates("pairs", (1, 2), 3, 4) == [[0, 1, 2], [1, 2, 3]]


def test_the_gaps_of_a_set() -> None:
    assert gaps([3, 4, 9]) == [(2, 4), (8, 9)]
    assert gaps([0, 1, 5]) == [(4, 5)]  # nothing comes before the first layer


def test_a_scan_of_healed_layers(demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The measured chunks are the text's own; behind them follow words of it in any order, to heal on.
    words, dice = TEXT.read_text().split(), random.Random(4)
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text() + " ".join(dice.choice(words) for _ in range(4000)))
    command = ["-m", str(demo_model), "-f", str(text), "-c", "64", "--chunks", "4", "-t", "1", "--layers", "8,9,8+9"]

    def damages(*options: str) -> dict[tuple[int, ...], float]:
        assert prune_scan.main([*command, "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)["damages"]
        return {tuple(one["layers"]): one["mean_kld"] for one in found}

    plain, healed = damages(), damages("--healed", "--heal-chunks", "56")
    assert plain.keys() == healed.keys()
    assert all(healed[layers] < plain[layers] for layers in plain)
    assert healed[8, 9] < 0.8 * plain[8, 9]


def test_a_count_of_all_layers_is_refused(demo_model: Path) -> None:
    with pytest.raises(prune_scan.UsageError, match="less than the model's layers"):
        prune_scan.main(["-m", str(demo_model), "-f", str(TEXT), "--count", "12"])
