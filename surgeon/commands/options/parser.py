"""The parser of every command's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from surgeon.terminal import escaped


class Parser(argparse.ArgumentParser):
    """argparse's own, but an argument that holds line ends is quoted on one line."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


class Once(argparse.Action):
    """An option that names one file: a second one would take its place without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option_string} is given twice: one text at a time; join them with cat")
        setattr(namespace, self.dest, values)
