"""Every action by name in the palette, grouped as in the help."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from surgeon.tui.keys import GROUPS, Action, keys_of

if TYPE_CHECKING:
    from surgeon.tui.host import Host


class SurgeonCommands(Provider):
    def _entries(self) -> list[tuple[str, Action]]:
        keymap = cast("Host", self.app).config.keys
        return [
            (f"{group.lower()}: {action.word}  ({' '.join(keys_of(action, keymap))})", action)
            for group, actions in GROUPS.items()
            for action in actions
        ]

    async def discover(self) -> Hits:
        for title, action in self._entries():
            yield DiscoveryHit(title, partial(self.screen.run_action, action.action), help=action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, action in self._entries():
            score = max(matcher.match(title), matcher.match(action.help))
            if score > 0:
                run = partial(self.screen.run_action, action.action)
                yield Hit(score, matcher.highlight(title), run, help=action.help)
