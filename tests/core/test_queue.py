"""The queue of work: order, states, and what of it survives the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.errors import SurgeonError
from surgeon.session.queue import DONE, FAILED, RUNNING, WAITING, Entry, Queue


def titles(queue: Queue) -> list[str]:
    return [entry.title for entry in queue.entries]


def test_one_after_the_other_in_the_order_wanted() -> None:
    queue = Queue()
    queue.add(*(Entry("evaluate", name) for name in "abc"))
    queue.move(queue.entries[2].id, -2)
    assert titles(queue) == ["c", "a", "b"]
    first = queue.next
    assert first is not None
    assert first.title == "c"
    queue.mark(first.id, RUNNING)
    assert queue.next is None, "one at a time"
    queue.mark(first.id, FAILED, "no such file")
    following = queue.next
    assert following is not None
    assert following.title == "a"
    queue.pause(True)
    assert queue.next is None
    queue.pause(False)
    queue.mark(queue.entries[1].id, DONE)
    assert queue.remove_ended() == 1
    assert titles(queue) == ["c", "b"], "what failed stays"


def test_it_survives_a_restart_and_waits_to_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "state" / "queue.json"
    queue = Queue.kept(path)
    assert not queue.paused
    queue.add(Entry("write", "a", {"out": "/a.gguf"}, "recipe = 1"), Entry("card", "b"))
    queue.mark(queue.entries[0].id, RUNNING)
    again = Queue.kept(path)
    assert [(entry.kind, entry.state) for entry in again.entries] == [("write", WAITING), ("card", WAITING)]
    assert (again.entries[0].answers, again.entries[0].recipe) == ({"out": "/a.gguf"}, "recipe = 1")
    assert again.paused, "nothing starts by itself"
    for entry in again.entries:
        again.remove(entry.id)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"kind": "write"}]', "[" * 100_000, '[{"kind": "x", "id": ""}]'])
def test_a_file_of_something_else_is_an_empty_queue(tmp_path: Path, text: str) -> None:
    path = tmp_path / "queue.json"
    path.write_text(text)
    assert Queue.kept(path).entries == ()


def test_what_cannot_be_kept_is_said_and_holds(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    path.mkdir()
    queue = Queue(path)
    with pytest.raises(SurgeonError):
        queue.add(Entry("card", "a"))
    assert titles(queue) == ["a"]
