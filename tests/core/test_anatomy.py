"""The table of architectures, the rules by which layers get their roles, and what pruning does with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_builder import build_gguf, value_of
from hypothesis import given
from hypothesis import strategies as st

from surgeon.anatomy import ARCHITECTURES, anatomy_of, layer_roles, prune_metadata
from surgeon.anatomy.roles import Leading, Listed, Metadata, Periodic, Trailing
from surgeon.anatomy.shifts import describe, shifted, spans
from surgeon.anatomy.table import ANATOMIES, PLAIN, WITHOUT_LAYERS
from surgeon.model.model import Layer, Model, load_model

Toy = Callable[..., Model]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """toy("gemma3", 12, {"attention.sliding_window": 64}, others={name: ne}) -> a model with one tensor per layer."""

    def make(architecture: str, layers: int, keys: dict[str, Any] | None = None, **more: Any) -> Model:
        kv = {"general.architecture": architecture, f"{architecture}.block_count": layers}
        kv |= {f"{architecture}.{key}": value for key, value in (keys or {}).items()}
        kv |= more.get("kv", {})
        tensors = {name: (type_, ne) for name, (type_, ne) in more.get("others", {}).items()}
        tensors |= {f"blk.{layer}.attn_norm.weight": ("F32", (4,)) for layer in range(layers)}
        return load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors))

    return make


def metadata(layers: int, **keys: Any) -> Metadata:
    kv = {"block_count": layers, **{key.replace("__", "."): value for key, value in keys.items()}}
    return Metadata("toy", {f"toy.{key}": value_of(value) for key, value in kv.items()})


def edits(model: Model, pruned: set[int], **options: Any) -> dict[str, Any]:
    """The edited keys without the architecture's name, decoded."""
    result = prune_metadata(model, frozenset(pruned), **options)
    prefix = model.architecture + "."
    return {key.removeprefix(prefix): None if value is None else value.decode() for key, value in result.kv}


def told(model: Model, pruned: set[int], severity: str, **options: Any) -> list[str]:
    notes = prune_metadata(model, frozenset(pruned), **options).notes
    return [note.text for note in notes if note.severity == severity]


# ------------------------------------------------------------------ the table


def test_every_architecture_stands_in_one_place() -> None:
    named = [name for anatomy in ANATOMIES for name in anatomy.names.split()]
    assert len(named) == len(set(named))
    assert not set(named) & (PLAIN | WITHOUT_LAYERS)
    assert set(named) | PLAIN | WITHOUT_LAYERS == ARCHITECTURES


def test_the_architectures_of_the_gguf_package_are_known() -> None:
    """Those it can name but llama.cpp has no loader for are no models of text."""
    import gguf

    names = set(gguf.MODEL_ARCH_NAMES.values())
    assert len(names & ARCHITECTURES) > 100
    assert {name for name in names - ARCHITECTURES if not name.startswith("mmproj")} <= {"mmproj"}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_can_be_asked(name: str, toy: Toy) -> None:
    anatomy = anatomy_of(name)
    assert anatomy is not None
    model = toy(name, 8)
    assert set(layer_roles(model)) in (set(), set(range(8)))


# ------------------------------------------------------------------ the rules


def test_a_period_counts_from_either_end() -> None:
    def at(first: int | None) -> str:
        return "".join(Periodic("G", "l", 3, first).of(metadata(7)))

    assert at(None) == "llGllGl"
    assert at(0) == "GllGllG"
    assert at(1) == "lGllGll"


def test_a_scalar_in_the_file_is_the_period_and_an_array_the_roles() -> None:
    role = Periodic("G", "l", 3, period_key="p", array_key="p")
    assert "".join(role.of(metadata(6, p=2))) == "lGlGlG"
    assert "".join(role.of(metadata(4, p=0))) == "llll"
    assert "".join(role.of(metadata(4, p=[False, True, True, False]))) == "GllG"
    assert "".join(role.of(metadata(4, p=[True]))) == "lGGG"  # llama.cpp leaves what the array lacks at zero


def test_a_pattern_needs_its_key() -> None:
    role = Periodic("G", "l", 2, active_key="window", active_default=0)
    assert role.of(metadata(2)) == ["", ""]
    assert role.of(metadata(2, window=64)) == ["l", "G"]
    assert Periodic("G", "l", 2, active_key="window", active_default=1).of(metadata(2)) == ["l", "G"]


def test_leading_trailing_and_listed_layers() -> None:
    assert Leading("dense", "moe", "n").of(metadata(3, n=1)) == ["dense", "moe", "moe"]
    assert Leading("dense", "moe", "n").of(metadata(2)) == ["", ""]
    trunk = metadata(5, nextn_predict_layers=1, n=2)
    assert Trailing("mtp", "nextn_predict_layers", inside_trunk=False).of(trunk) == ["", "", "", "", "mtp"]
    assert Trailing("head", "n").of(trunk) == ["", "", "head", "head", ""]
    assert Listed("kv", zero="r", nonzero="a").of(metadata(3, kv=[0, 8, 0])) == ["r", "a", "r"]
    assert Listed("kv", zero="r", nonzero="a").of(metadata(2, kv=8)) == ["", ""]


@given(st.integers(2, 40), st.integers(1, 8), st.sets(st.integers(0, 39), min_size=1, max_size=5))
def test_shifts_are_exactly_the_layers_whose_role_differs(layers: int, period: int, gone: set[int]) -> None:
    kept = [layer for layer in range(layers) if layer not in gone]
    changes = shifted(Periodic("G", "l", period), metadata(layers), metadata(len(kept)), kept)
    for number, layer in enumerate(kept):
        assert (layer in changes) == ((layer % period == period - 1) != (number % period == period - 1))


def test_words_for_shifts() -> None:
    assert spans([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"
    assert spans([5, 11, 17, 18, 23, 29, 35], 5) == "5, 11, 17-18, …, 35 (7 layers)"
    assert describe({5: ("global", "local"), 6: ("local", "global"), 11: ("global", "local")}) == (
        "global → local: 5, 11; local → global: 6"
    )
    assert describe({4: ("", "nope")}) == "ordinary → nope: 4"


# ------------------------------------------------------------------- pruning


def test_nothing_pruned_changes_nothing(toy: Toy) -> None:
    result = prune_metadata(toy("gemma3", 12, {"attention.sliding_window": 64}), frozenset())
    assert (result.kv, result.slices, result.notes) == ((), (), ())


def test_a_number_that_does_not_exist_changes_nothing(toy: Toy) -> None:
    assert prune_metadata(toy("llama", 4, {"feed_forward_length": [1, 2, 3, 4]}), frozenset({9})).kv == ()


def test_entries_of_pruned_layers_go_and_the_element_type_stays(toy: Toy) -> None:
    keys = {
        "attention.head_count_kv": [8, 0, 4, 2],
        "feed_forward_length": 512,
        "rope.dimension_sections": [1, 2, 3, 4],
    }
    model = toy("llama", 4, keys)
    assert edits(model, {1, 2}) == {"attention.head_count_kv": [8, 2]}
    value = dict(prune_metadata(model, frozenset({1, 2})).kv)["llama.attention.head_count_kv"]
    assert value is not None
    assert value.element_type == model.file.kv["llama.attention.head_count_kv"].element_type


def test_arrays_over_the_trunk_lose_only_its_layers(toy: Toy) -> None:
    """With one prediction layer: types of the indexers exist for the 4 layers before it."""
    keys = {"nextn_predict_layers": 1, "attention.indexer.types": [True, False, True, False]}
    assert edits(toy("glm-dsa", 5, keys), {1}) == {"attention.indexer.types": [True, True, False]}
    assert edits(toy("glm-dsa", 5, keys), {4}) == {"nextn_predict_layers": 0}


def test_an_array_that_is_too_short_is_left_with_a_warning(toy: Toy) -> None:
    model = toy("llama", 4, {"attention.head_count_kv": [2, 2]})
    assert edits(model, {0}) == {}
    assert told(model, {0}, "warning") == ["llama.attention.head_count_kv has 2 entries for 4 layers: left as it is"]


def test_an_array_longer_than_the_model_loses_the_entries_too(toy: Toy) -> None:
    assert edits(toy("deepseek4", 3, {"attention.compress_ratios": [1, 2, 3, 4]}), {1}) == {
        "attention.compress_ratios": [1, 3, 4]
    }


def test_an_unlisted_array_of_the_right_length_is_shortened_with_a_warning(toy: Toy) -> None:
    model = toy("llama", 5, {"attention.novelty": [1, 2, 3, 4, 5], "tags": ["a", "b", "c", "d", "e"]})
    assert edits(model, {4}) == {"attention.novelty": [1, 2, 3, 4]}
    assert "attention.novelty is not known" in told(model, {4}, "warning")[0]


def test_an_unknown_architecture_is_told_and_needs_consent(toy: Toy) -> None:
    keys = {
        "layer_offset": 3,
        "novelty": [1, 2, 3],
        "leading_dense_block_count": 1,
        "attention.layer_norm_epsilon": 1e-5,
    }
    model = toy("martian", 3, keys)
    (refusal,) = told(model, {0}, "error")
    assert "'martian' is not known" in refusal
    assert "one entry per layer: novelty" in refusal
    assert "keys that may speak of layers: layer_offset, leading_dense_block_count;" in refusal
    assert refusal.endswith("--i-know prunes all the same")
    assert told(model, {0}, "error", i_know=True) == []
    assert edits(model, {0}, i_know=True) == {"novelty": [2, 3], "leading_dense_block_count": 0}


def test_what_was_frozen_once_is_shortened_the_next_time(toy: Toy) -> None:
    first = edits(toy("gemma3", 12, {"attention.sliding_window": 64}), {2})["attention.sliding_window_pattern"]
    again = toy("gemma3", 11, {"attention.sliding_window": 64, "attention.sliding_window_pattern": first})
    assert edits(again, {10}) == {"attention.sliding_window_pattern": first[:10]}
    assert told(again, {10}, "warning") == []
    assert layer_roles(again)[4] == "global"


def test_advice_names_neighbours_that_leave_every_role_in_place(toy: Toy) -> None:
    model = toy("smollm3", 16)
    (warning,) = told(model, {5}, "warning")
    assert "ordinary → nope: 8, 12" in warning
    assert "nope → ordinary: 7, 11, 15" in warning
    assert "prune 5-8 or 2-5 and none does" in warning
    for advised in ({5, 6, 7, 8}, {2, 3, 4, 5}):
        assert told(model, advised, "warning") == []


def test_advice_for_two_layers_far_apart_is_two_periods(toy: Toy) -> None:
    model = toy("smollm3", 24)
    (warning,) = told(model, {1, 20}, "warning")
    assert "prune 1-4, 20-23" in warning
    assert told(model, {1, 2, 3, 4, 20, 21, 22, 23}, "warning") == []


def bare_model(architecture: str, layers: int, keys: dict[str, Any]) -> Model:
    """A model without a file: metadata and empty layers."""
    kv = {f"{architecture}.{key}": value_of(value) for key, value in ({"block_count": layers} | keys).items()}
    file: Any = SimpleNamespace(kv=kv)
    return Model(file, architecture, tuple(Layer(layer, ()) for layer in range(layers)), (), ())


@given(
    st.sampled_from(["gemma2", "gemma3", "gpt-oss", "cohere2", "modern-bert", "qwen3next", "laguna", "minimax-01"]),
    st.sets(st.integers(0, 47), min_size=1, max_size=6),
)
def test_frozen_roles_are_those_of_the_input(architecture: str, gone: set[int]) -> None:
    """Whatever is pruned: with the array written, every kept layer has the role it had."""
    keys: dict[str, Any] = {"attention.sliding_window": 1024}
    before = bare_model(architecture, 48, keys)
    for key, value in prune_metadata(before, frozenset(gone)).kv:
        assert value is not None
        keys[key.removeprefix(architecture + ".")] = value
    after = bare_model(architecture, 48 - len(gone), keys)
    roles = layer_roles(before)
    kept = [roles[layer] for layer in range(48) if layer not in gone]
    assert [layer_roles(after).get(number, kept[0]) for number in range(len(kept))] == kept
