"""The screen. Only this package knows textual; `surgeon.tui.app.run` is its one door.

The colour system is decided here, before textual reads it: true-colour terminals are sent 256-colour codes too, because
the picture is made of that table and the codes are a third shorter. TEXTUAL_COLOR_SYSTEM overrules it.
"""

import os

if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
    os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", "256")
