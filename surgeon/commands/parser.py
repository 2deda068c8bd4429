"""The parser of every command's options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from surgeon.terminal import escaped


class Parser(argparse.ArgumentParser):
    """argparse's own, but an argument that holds line ends is quoted on one line."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))
