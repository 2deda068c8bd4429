"""D: the metadata keys on the screen, each edit a step of the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui_helpers import opened, session_of, typed

from surgeon.gguf.values import Value, ValueType
from surgeon.session.metadata import folded, key_rows, whole_lines
from surgeon.session.session import Session
from surgeon.tui.app import SurgeonApp
from surgeon.tui.dialogs.prompt import Prompt
from surgeon.tui.dialogs.views.metadata import Metadata, ValueReader, key_line
from surgeon.tui.drawing.spans import plain


@pytest.fixture
def session(model_copy: Path) -> Session:
    return session_of(model_copy)


async def on_key(app: SurgeonApp, pilot: Pilot[int], key: str) -> Metadata:
    await pilot.press("D")
    dialog = app.screen
    assert isinstance(dialog, Metadata)
    await pilot.press("slash")
    await typed(pilot, key)
    await pilot.press("enter")
    assert app.screen is dialog
    assert dialog.row is not None
    assert dialog.row.key == key
    return dialog


async def replace_text(app: SurgeonApp, pilot: Pilot[int], text: str) -> Prompt:
    prompt = app.screen
    assert isinstance(prompt, Prompt)
    prompt.entry.value = text
    await pilot.pause()
    await pilot.press("enter")
    return prompt


async def test_a_value_is_edited_deleted_and_taken_back(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        dialog = await on_key(app, pilot, "llama.context_length")
        await pilot.press("e")
        prompt = await replace_text(app, pilot, "many")
        assert app.screen is prompt, "not a number"
        await replace_text(app, pilot, "64")
        assert dict(session.resolution.metadata)["llama.context_length"].decode() == 64
        assert dialog.row is not None
        assert dialog.row.state == "set"
        await pilot.press("x")
        assert "llama.context_length" not in dict(session.resolution.metadata)
        assert dialog.row.state == "deleted"
        await pilot.press("u")
        assert dict(session.resolution.metadata)["llama.context_length"].decode() == 64
        await pilot.press("s")
        assert session.plan.override_kv == ()
        await pilot.press("escape", "u")
        assert session.plan.override_kv != (), "undo in the tree takes it back too"


async def test_keys_are_added_and_set_from_a_file(session: Session, model_copy: Path) -> None:
    template = model_copy.with_name("chat.jinja")
    template.write_text("{% for m in messages %}\n{{ m }}\n{% endfor %}", encoding="utf-8")
    async with opened(session, (100, 30)) as (app, pilot):
        await pilot.press("D", "a")
        await replace_text(app, pilot, "nothing")
        assert isinstance(app.screen, Prompt)
        await replace_text(app, pilot, "tokenizer.chat_template=x")
        dialog = app.screen
        assert isinstance(dialog, Metadata)
        assert dialog.row is not None
        assert (dialog.row.key, dialog.row.state) == ("tokenizer.chat_template", "new")
        await pilot.press("f")
        await replace_text(app, pilot, str(template))
        assert dict(session.resolution.metadata)["tokenizer.chat_template"].decode() == template.read_text()
        await pilot.press("enter")
        assert isinstance(app.screen, ValueReader)
        assert "   2  {{ m }}" in app.screen.shown
        await pilot.press("escape", "e")
        assert app.screen is dialog, "several lines do not go into a prompt"
        await pilot.press("x")
        assert "tokenizer.chat_template" not in dict(session.resolution.metadata)


async def test_arrays_are_read_and_never_edited(session: Session) -> None:
    async with opened(session, (100, 30)) as (app, pilot):
        dialog = await on_key(app, pilot, "tokenizer.ggml.tokens")
        await pilot.press("e")
        assert app.screen is dialog
        await pilot.press("enter")
        assert isinstance(app.screen, ValueReader)
        assert "more" in app.screen.shown.splitlines()[-1]


async def test_the_architecture_cannot_go(session: Session) -> None:
    async with opened(session) as (app, pilot):
        dialog = await on_key(app, pilot, "general.architecture")
        await pilot.press("x")
        assert "cannot be deleted" in str(dialog.query_one("#about").render())


def test_what_the_plan_changes_itself_is_told_apart(session: Session) -> None:
    session.set_file_type("Q8_0")
    rows = {row.key: row for row in key_rows(session)}
    assert rows["general.file_type"].state == "planned"
    assert plain(key_line(rows["general.file_type"], 30, 90)).split() == [
        "·", "general.file_type", "uint32", "1", "→", "7",
    ]  # fmt: skip
    assert [row.key for row in key_rows(session, "~glfty")] == ["general.file_type"]
    assert {row.key for row in key_rows(session, "llama block")} == {"llama.block_count"}


def test_long_values_are_folded() -> None:
    line = "{% if a %}" * 5 + "x" * 50
    pieces = folded(line, 24)
    assert "".join(pieces) == line
    assert max(map(len, pieces)) <= 24
    assert pieces[0].endswith("%}")
    numbers = Value.array(ValueType.INT32, list(range(5000)))
    assert len(list(whole_lines(numbers))) == 2001
