"""Keys act in the order typed, whatever the burst.

Textual hands a key that no priority binding takes to the widget with the focus, whose own queue may be behind: of
`:attn_v=q6_k`, Ctrl+U, `ffn_up=q6_k` in one write, Ctrl+U would come last. Here a key is dealt with to its end, and a
dialog it opened stands with its focus, before the next one is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from textual import events
from textual.app import App
from textual.message_pump import MessagePump

from surgeon.tui.terminal import SparingDriver

PATIENCE = 2.0  # seconds to wait for a widget; one that takes longer is being removed or hangs, and must not hold keys


class KeyOrder(App[int]):
    """An application that deals with one key, or paste, at a time."""

    def __init__(self) -> None:
        super().__init__(driver_class=SparingDriver)
        self._unfinished: list[Awaitable[object]] = []

    def before_next_key(self, step: Awaitable[object]) -> None:
        """Do `step` before the next key is looked at: for callbacks that cannot wait themselves."""
        self._unfinished.append(step)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key):
            if event.is_forwarded:
                return  # it has bubbled up to here: `_hand_over` has seen to it
            for key in self._apart(event):
                await self._deal_with(key)
        elif isinstance(event, events.Paste) and not event.is_forwarded:
            await self._deal_with(event)
        else:
            await super().on_event(event)

    def _apart(self, key: events.Key) -> list[events.Key]:
        """Escape and the key after it where they came so quickly that the terminal's code reads as Alt and that key.

        And Enter typed before the program began to read keys: the terminal has made Ctrl+J of it.
        """
        start, alt, name = key.key.rpartition("alt+")
        if any(key.key in chain.key_to_bindings for _, chain in self.screen._binding_chain):
            return [key]
        if key.key == "ctrl+j":
            return [events.Key("enter", "\r")]
        if not alt or start:
            return [key]
        if name.startswith("shift+"):
            name = name.removeprefix("shift+").upper()
        return [events.Key("escape", "\x1b"), events.Key(name, key.character)]

    async def _deal_with(self, event: events.Key | events.Paste) -> None:
        target = self.focused or self.screen
        event.set_sender(target)  # of an event that the application sent, the screen would say it was taken
        await super().on_event(event)
        if event.is_forwarded:
            await self._hand_over(target, event)
        while self._unfinished:
            await self._unfinished.pop(0)
        if isinstance(event, events.Key):
            self.key_done(event.key)
        await self._settled()

    def key_done(self, key: str) -> None:
        """After each key, for what holds until the next one."""

    async def _hand_over(self, target: MessagePump, event: events.Key | events.Paste) -> None:
        """Wait for `target` and those around it to deal with the event, then see to what none of them took."""
        node: MessagePump | None = target
        while node is not None and node is not self:
            await dealt_with(node)
            if event._stop_propagation:
                return
            node = node._parent
        if isinstance(event, events.Key):
            await self._on_key(event)

    async def _settled(self) -> None:
        """Until the screen on top is there whole: its focus is where the next key goes."""
        screen = self.screen
        if not screen._mounted_event.is_set():
            await within_patience(screen._mounted_event)


async def dealt_with(pump: MessagePump) -> None:
    """Until `pump` has dealt with what was sent to it so far."""
    done = asyncio.Event()
    if pump.call_later(done.set):
        await within_patience(done)


async def within_patience(event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), PATIENCE)
    except TimeoutError:
        return
