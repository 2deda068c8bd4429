"""Lines of spans, colours, and the widgets that paint them. May import the session and leaves, no dialog and no app."""
