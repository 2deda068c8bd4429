"""Work that runs in threads beside the screen, and the messages it posts. May import the core, not widgets."""
