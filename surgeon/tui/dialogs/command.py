"""The llama-quantize command that does what the plan does, and what it cannot say."""

from __future__ import annotations

from surgeon.llama_quantize.translation import Exported
from surgeon.tui.dialogs.reader import Reader
from surgeon.tui.drawing.spans import Line, clean, wrap


class CommandReader(Reader):
    def __init__(self, exported: Exported) -> None:
        super().__init__("llama-quantize", "sent to the clipboard (OSC 52) · Esc close")
        self.exported = exported

    def lines(self, width: int) -> list[Line]:
        lines = wrap(clean(self.exported.command()), width, "strong", "  ")
        for text in self.exported.wrong:
            lines += wrap(f"differs: {clean(text)}", width, "warning", "  ")
        for text in self.exported.remarks:
            lines += wrap(f"note: {clean(text)}", width, "muted", "  ")
        return lines
