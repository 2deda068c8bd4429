"""The map: what its cells show at every size, and what is painted on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tui_helpers import opened, session_of

from surgeon.gguf.layout import Entry, header
from surgeon.gguf.values import Value, ValueType
from surgeon.model.model import load_model
from surgeon.session.model_map import Grid, step
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.dialogs.lists.type_picker import TypePicker
from surgeon.tui.dialogs.views.map import MapDialog
from surgeon.tui.drawing.map_lines import LABEL, MapState, bits_sign, key_line, map_lines, place_at, views
from surgeon.tui.drawing.spans import plain, width_of
from surgeon_kernels.formats import FORMATS


@pytest.fixture
def session(demo_model: Path, demo_imatrix: Path) -> Session:
    session = session_of(demo_model, demo_imatrix)
    session.set_file_type("Q4_K_M")
    return session


def model_of(path: Path, layers: int) -> Path:
    """A sparse model of as many layers, two tensors each."""
    names = [f"blk.{layer}.{short}.weight" for layer in range(layers) for short in ("attn_q", "ffn_down")]
    entries = [Entry(name, (256, 64), FORMATS["F16"].number, 256 * 64 * 2) for name in names]
    pairs = [("general.architecture", Value.of(ValueType.STRING, "llama"))]
    layout = header([*pairs, ("llama.block_count", Value.of(ValueType.UINT32, layers))], entries, 32)
    with path.open("wb") as out:
        out.write(layout.data)
        out.truncate(layout.total_bytes)
    return path


def state_of(session: Session, **rest: Any) -> MapState:
    return MapState(session, Grid.of(session.model, session.can_quantize), views(session)[0], **rest)


def row_of(state: MapState, kind: str, width: int = 200, height: int = 40) -> str:
    lines = [plain(line) for line in map_lines(state, width, height)]
    return next(line[LABEL:] for line in lines if line[1:].startswith(kind))


def test_one_cell_a_tensor_with_the_bits_it_gets(session: Session) -> None:
    ops = session.ops
    wanted = "".join(bits_sign(ops[f"blk.{layer}.ffn_down.weight"].to_type) + "  " for layer in range(12))
    assert row_of(state_of(session), "ffn_down") == wanted
    assert set(wanted) == {"4", "6", " "}
    assert row_of(state_of(session), "output") == "6  " + "   " * 11, "outside the layers there is one"
    kinds = state_of(session).grid.kinds
    assert "attn_norm" not in kinds
    assert kinds[-2:] == ("output", "token_embd") or kinds[-2:] == ("token_embd", "output")


@pytest.mark.parametrize(("layers", "each"), [(61, 1), (64, 1), (65, 2), (126, 2), (250, 4)])
def test_layers_share_cells_only_where_they_must(tmp_path: Path, layers: int, each: int) -> None:
    session = session_of(model_of(tmp_path / "m.gguf", layers))
    session.set_types([f"blk.{layers - 1}.ffn_down.weight"], "Q4_0")
    state = state_of(session)
    lines = map_lines(state, 80, 20)
    assert all(width_of(line) <= 80 for line in lines)
    row = row_of(state, "ffn_down", 80, 20)
    assert len(row) == -(-layers // each)
    assert row.count("4") == (layers % each == 1 or each == 1), "of several layers the most bits are shown"
    found = {place_at(state, LABEL + place, 3, 80, 20) for place in range(len(row))}
    assert found == {(1, place * each) for place in range(len(row))}


def test_pruned_columns_are_crossed_out(session: Session) -> None:
    session.toggle_prune([2])
    state = state_of(session)
    assert [row_of(state, kind)[6] for kind in ("attn_q", "ffn_down")] == ["✗", "✗"]
    assert plain(map_lines(state, 80, 20)[1])[LABEL + 6] == "✗"


def test_steps_follow_the_ladder_of_the_family(session: Session) -> None:
    tensor = session.tensors["blk.1.attn_q.weight"]
    up, down = step(session, tensor, 1), step(session, tensor, -1)
    assert up is not None
    assert down is not None
    assert (up.type, down.type) == ("Q5_K", "Q3_K")
    before = session.resolution.total_bytes
    session.set_types([tensor.name], up.type)
    assert session.resolution.total_bytes - before == up.more
    session.set_types([tensor.name], "IQ2_XS")
    up = step(session, tensor, 1)
    assert up is not None
    assert up.type == "IQ2_S"
    session.set_types([tensor.name], "F16")
    assert step(session, tensor, 1) is None


async def opened_map(app: SurgeonApp, pilot: Any) -> MapDialog:
    await pilot.press("M")
    assert isinstance(app.screen, MapDialog)
    return app.screen


async def test_a_rectangle_is_painted_and_taken_back(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await pilot.press("3", "G")
        dialog = await opened_map(app, pilot)
        assert dialog.state.cursor == (0, 3), "on the layer of the tree's cursor"
        await pilot.press("v", "l", "j", "t")
        picker = app.screen
        assert isinstance(picker, TypePicker)
        await pilot.press(*"q8", "enter")
        painted = {f"blk.{layer}.{kind}.weight" for layer in (3, 4) for kind in ("attn_k", "attn_output")}
        assert dict(session.plan.types) == dict.fromkeys(painted, "Q8_0")
        assert dialog.state.corner is None
        await pilot.press("u")
        assert session.plan.types == ()
        await pilot.press("v", "l", "plus")
        assert set(dict(session.plan.types).values()) == {"Q5_K"}
        await pilot.press("p")
        assert session.plan.pruned == {4, 5}
        await pilot.press("u", "u", "escape")
        assert app.screen is app.main
        assert session.plan.pruned == frozenset()


async def test_views_in_turn_and_by_name(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        dialog = await opened_map(app, pilot)
        keys = [view.key for view in views(session)]
        for key in (*keys[1:], keys[0]):
            if key != "err":
                assert dialog.state.view.key != key
            await pilot.press("tab")
            assert dialog.state.view.key == key
        await pilot.press("V", *"entropy"[:1], "backspace", *"size", "enter")
        assert dialog.state.view.key == "size"
        session.set_types(["blk.0.attn_k.weight"], "Q8_0")
        await pilot.press("V", *"change", "enter")
        assert row_of(dialog.state, "attn_k")[0] == "▲"
        assert row_of(dialog.state, "attn_k")[3] == "="


async def test_errors_come_in_from_a_process_of_their_own(tmp_path: Path) -> None:
    session = session_of(model_of(tmp_path / "m.gguf", 2))
    with session.model.file.path.open("r+b") as file:
        file.seek(-2 * 4 * 256 * 64, 2)
        weights = np.random.default_rng(0).standard_normal(4 * 256 * 64)
        file.write(weights.astype(np.float16).tobytes())
    session.set_file_type("Q8_0")
    async with opened(session, (100, 30)) as (app, pilot):
        dialog = await opened_map(app, pilot)
        await pilot.press("tab")
        assert dialog.state.view.key == "err"
        for _ in range(6000):
            await pilot.pause(0.02)
            if not dialog._measuring:
                break
        found = app.main.errors["blk.1.ffn_down.weight"]
        assert set(found) == {"Q8_0", "F16", "Q6_K"}
        assert found["F16"] == 0 < found["Q8_0"] < 0.01 < found["Q6_K"] < 0.1
        assert "·" not in row_of(dialog.state, "ffn_down")


async def test_enter_goes_to_the_tensor_in_the_tree(session: Session) -> None:
    async with opened(session) as (app, pilot):
        await opened_map(app, pilot)
        await pilot.press("l", "l", "G", "k", "k", "enter")
        assert app.screen is app.main
        assert app.main.row is not None
        assert app.main.row.key == "blk.2.ffn_up.weight"


def test_eighty_columns_name_the_way_into_the_tree_and_out(session: Session) -> None:
    line = key_line(state_of(session), 80)
    assert plain(line).rstrip().endswith("Enter tree  Esc close")
    assert len(plain(line).rstrip()) <= 80


def test_roles_have_a_line(tmp_path: Path) -> None:
    path = model_of(tmp_path / "m.gguf", 12)
    session = Session(load_model(path))
    session.__dict__["roles"] = {layer: "global" if layer % 6 == 5 else "local" for layer in range(12)}
    lines = [plain(line) for line in map_lines(state_of(session), 80, 20)]
    assert lines[2].startswith(" role")
    assert lines[2][LABEL:].split() == list("lllllglllllg")
