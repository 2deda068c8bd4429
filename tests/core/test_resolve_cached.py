"""What `resolve` keeps between plans changes no result, and sizes shown are those of the headers laid out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import build_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prune_families import side_by_side
from test_resolve import weights_for

from surgeon.imatrix.imatrix import Imatrix
from surgeon.model.model import load_model
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Plan, TypeRule, parse_rule, with_experts_toggled, with_rule
from surgeon.resolve import metadata as output_metadata
from surgeon.resolve import tensor_facts
from surgeon.resolve.resolve import Resolution, resolve
from surgeon.resolve.type_choice import chosen_by
from surgeon.session.session import LayerSummary, Session, is_matrix
from surgeon.write.layouts import lay_out

MODELS = ("dense.gguf", "moe8.gguf", "gemma3.gguf", "shard-00001-of-00003.gguf")
TYPES = ("Q4_K", "Q6_K", "IQ2_XXS", "Q8_0", "F16")
NAMES = ("output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.3.ffn_down.weight", "blk.1.attn_norm.weight")

plans = st.builds(
    Plan,
    file_type=st.sampled_from([*FILE_TYPES, *["COPY"] * 8]),
    pruned=st.frozensets(st.integers(0, 4), max_size=3),
    rules=st.lists(
        st.builds(TypeRule, st.sampled_from(("attn_v", r"blk\.[0-2]\.", "ffn_.*", "output")), st.sampled_from(TYPES)),
        max_size=2,
    ).map(tuple),
    types=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TYPES), max_size=2).map(
        lambda types: tuple(sorted(types.items()))
    ),
    include_weights=st.sampled_from(((), ("attn",))),
    pure=st.booleans(),
    leave_output_tensor=st.booleans(),
    keep_split=st.booleans(),
    compat=st.booleans(),
)


def forget() -> None:
    tensor_facts._known.clear()
    chosen_by.cache_clear()
    output_metadata._guess.cache_clear()


def outcome(resolution: Resolution) -> tuple[object, ...]:
    """Everything but the model itself, which is another object when it was read anew."""
    ops = [(op.tensor.name, op.ne, *op[1:]) for op in resolution.ops]
    sizes = resolution.total_bytes, resolution.data_bytes, resolution.n_parameters, resolution.bpw
    told = resolution.metadata, resolution.problems, resolution.renumbering, resolution.needs_imatrix
    return ops, sizes, told, resolution.fallbacks


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(plans, st.booleans()), min_size=2, max_size=4))
def test_earlier_plans_change_nothing(golden_models: Path, name: str, wanted: list[tuple[Plan, bool]]) -> None:
    model = load_model(golden_models / name)
    weights = weights_for(model)
    kept = [outcome(resolve(model, plan, weights if weighed else None)) for plan, weighed in wanted]
    again = load_model(golden_models / name)
    for known, (plan, weighed) in zip(kept, wanted, strict=True):
        forget()
        fresh = Imatrix(weights.path, dict(weights.entries), weights.datasets, weights.chunk_count)
        assert known == outcome(resolve(again, plan, fresh if weighed else None))


EDITS = st.one_of(
    st.tuples(st.just("prune"), st.integers(0, 4)),
    st.tuples(st.just("experts"), st.integers(0, 3)),
    st.tuples(st.just("types"), st.lists(st.sampled_from(NAMES), min_size=1), st.sampled_from((*TYPES, None))),
    st.tuples(st.just("rule"), st.sampled_from(("attn_v=q6_k", "ffn_.*=iq2_xxs", "output=f16"))),
    st.tuples(st.just("base"), st.sampled_from(("COPY", "Q4_K_M", "Q2_K_S", "IQ2_XXS", "F16"))),
    st.tuples(st.sampled_from(("imatrix", "undo", "undo", "redo", "redo"))),
)


def edit(session: Session, what: str, *how: Any) -> None:
    if what == "prune":
        layers = list(session.tensors_of)
        layer = layers[how[0] % len(layers)]
        if set(layers) - session.plan.pruned != {layer}:
            session.toggle_prune([layer])
    elif what == "experts":  # tensors that are cut; where there are none, an error among the problems
        session.change(with_experts_toggled(session.plan, {0: how}), "experts")
    elif what == "types":
        session.set_types(*how)
    elif what == "rule":
        session.change(with_rule(session.plan, parse_rule(*how)), "a rule")
    elif what == "base":
        session.set_file_type(*how)
    elif what == "imatrix":
        session.change(replace(session.plan, imatrix_file=None if session.imatrix else "known"), "imatrix")
    elif what in ("undo", "redo"):
        getattr(session, what)()


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, min_size=4, max_size=16))
def test_edits_come_to_what_the_plan_alone_does(golden_models: Path, name: str, edits: list[tuple[Any, ...]]) -> None:
    session, again = Session(load_model(golden_models / name)), load_model(golden_models / name)
    known = weights_for(session.model, "blk.1.attn_q.weight")
    session.imatrices["known"] = known
    for one in edits:
        edit(session, *one)
        tensor_facts._known.pop(again, None)
        fresh = Imatrix(known.path, dict(known.entries), known.datasets, known.chunk_count) if session.imatrix else None
        alone = resolve(again, session.plan, fresh)
        assert outcome(session.resolution) == outcome(alone)
        assert [session.layers[layer] for layer in session.tensors_of] == summaries(session, alone)


def summaries(session: Session, resolution: Resolution) -> list[LayerSummary]:
    """Worked out op by op."""
    found = []
    for layer in session.model.layers:
        ops = [op for op in resolution.ops if op.tensor.layer == layer.index]
        ops.sort(key=lambda op: [tensor.name for tensor in layer.tensors].index(op.source))
        kept = [op for op in ops if op.action != "drop"]
        sizes = sum(op.tensor.nbytes for op in ops), sum(op.nbytes for op in kept), sum(op.n_elements for op in kept)
        types = tuple(dict.fromkeys(op.to_type for op in kept if is_matrix(op.tensor)))
        number = resolution.renumbering.get(layer.index, layer.index)
        changed = any(op.to_type != op.from_type for op in kept)
        found.append(LayerSummary(layer.index, number, *sizes, types, changed))
    return found


def test_what_an_edit_leaves_alone_is_not_decided_again(golden_models: Path) -> None:
    session = Session(load_model(golden_models / "dense.gguf"))
    session.set_file_type("Q4_K_M")
    before = session.ops
    session.set_types(["blk.1.ffn_up.weight"], "Q8_0")
    assert [name for name, op in session.ops.items() if op is not before[name]] == ["blk.1.ffn_up.weight"]
    before = session.ops
    session.toggle_prune([3])
    session.undo()
    assert session.ops is before


def laid_out(resolution: Resolution) -> int:
    return sum(layout.header.total_bytes for layout in lay_out(resolution, resolution.model.file.path))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans)
def test_sizes_are_those_of_the_headers(golden_models: Path, name: str, plan: Plan) -> None:
    resolution = resolve(load_model(golden_models / name), plan)
    assert resolution.total_bytes == laid_out(resolution)
    assert resolution.n_parameters == sum(op.n_elements for op in resolution.kept)


def test_sizes_with_tensors_of_all_layers_cut(tmp_path: Path) -> None:
    kv = {"general.architecture": "gemma4", "gemma4.block_count": 8, "general.name": "Zwölf"}
    tensors = side_by_side(8, 4) | {f"blk.{layer}.attn_norm.weight": ("F32", (4, 1)) for layer in range(8)}
    resolution = resolve(load_model(build_gguf(tmp_path / "toy.gguf", kv, tensors)), Plan(pruned=frozenset({7})))
    assert sum(op.slice is not None for op in resolution.ops) == 2
    assert resolution.total_bytes == laid_out(resolution)
    assert resolution.n_parameters == 28 * 8 + 32 * 28 + 7 * 4
