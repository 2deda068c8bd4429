"""The user's folders are the user's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from surgeon import folders
from surgeon.errors import SurgeonError

FINDERS = [folders.state_folder, folders.log_folder, folders.cache_folder]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    before = os.umask(0)
    try:
        yield tmp_path
    finally:
        os.umask(before)


@pytest.mark.parametrize("finder", FINDERS)
def test_folders_are_private_whatever_the_umask(home: Path, finder: Callable[[], Path]) -> None:
    folder = finder()
    assert folder.is_relative_to(home)
    assert not folder.is_relative_to(home / "tmp")
    assert {_mode(path) for path in (folder, folder.parent)} == {0o700}
    folder.chmod(0o777)  # as an earlier version, or an umask, may have left it
    assert finder() == folder
    assert _mode(folder) == 0o700


@pytest.mark.parametrize("finder", FINDERS)
def test_a_folder_of_another_user_is_passed_over(
    home: Path, finder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finder()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(SurgeonError, match="by you alone"):  # what is made here is not that user's either
        finder()
    monkeypatch.undo()
    assert _mode(folder) == 0o700


def test_a_link_in_the_temporary_folder_is_not_followed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nonexistent")
    victim = home / "victim"
    victim.mkdir(mode=0o755)
    (home / "tmp" / f"surgeon-{os.getuid()}-state").symlink_to(victim)
    with pytest.raises(SurgeonError, match="XDG_STATE_HOME"):
        folders.state_folder()
    assert _mode(victim) == 0o755
