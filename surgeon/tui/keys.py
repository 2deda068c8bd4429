"""Every key of the main screen, once: bindings, key bar, help and palette are made from this table."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding

from surgeon.tui.drawing.bars import Hint


@dataclass(frozen=True)
class Action:
    """id: the name in the config file; keys: default keys, comma separated; word: in the key bar and palette."""

    id: str
    keys: str
    action: str
    word: str
    help: str


GROUPS: dict[str, tuple[Action, ...]] = {
    "Move": (
        Action("up", "up,k", "move(-1)", "up", "one row up"),
        Action("down", "down,j", "move(1)", "down", "one row down"),
        Action("page-up", "pageup,ctrl+b", "move_page(-1)", "page up", "one page up"),
        Action("page-down", "pagedown,ctrl+f", "move_page(1)", "page down", "one page down"),
        Action("top", "g,home", "move_to(0)", "top", "first row"),
        Action("bottom", "G,end", "move_to(-1)", "bottom", "last row; 26G goes to layer 26"),
        Action("next-layer", "J", "move_layer(1)", "next layer", "next layer"),
        Action("previous-layer", "K", "move_layer(-1)", "previous layer", "previous layer"),
        Action("along-next", "right_square_bracket", "along(1)", "along", "the same tensor one layer on"),
        Action("along-previous", "left_square_bracket", "along(-1)", "along back", "the same tensor one layer back"),
    ),
    "Look": (
        Action("fold", "enter", "toggle_fold", "fold", "fold or unfold the layer"),
        Action("unfold", "l,right", "unfold", "unfold", "unfold the layer, then go into it"),
        Action("close", "h,left", "fold", "close", "go to the layer, then fold it"),
        Action("fold-all", "z", "fold_all", "fold all", "fold or unfold all layers"),
        Action("flat", "f", "flat", "flat", "all tensors in one list, to rank them against each other"),
        Action("filter", "slash", "filter", "filter", "show only what matches: ffn_down, size>100MB, cos>0.99 …"),
        Action("sort", "s", "sort", "sort", "sort by a column; choose again to reverse"),
        Action("columns", "c", "columns", "columns", "choose the columns"),
        Action("map", "M", "map", "map", "the whole model at once, one cell a tensor: look, select, paint, prune"),
        Action("metric", "V", "metric", "metric", "choose the metric of strip and curve"),
        Action("detail", "d", "detail", "detail", "show or hide the detail pane"),
        Action("weights", "W", "weights", "weights", "the row's weights: histogram, spread, outliers; use of experts"),
        Action("preflight", "exclamation_mark", "preflight", "pre-flight", "the list of errors, warnings and notes"),
        Action("clear", "escape", "clear", "clear", "clear the filter, then the order, then the marks"),
    ),
    "Operate": (
        Action("experts", "X", "experts", "experts", "experts × layers: calls, router weight, saliency; prune them"),
        Action("mark", "space", "mark", "mark", "mark the row for p and t"),
        Action("range", "v", "range", "range", "mark from here on to where the cursor goes; v or Space ends it"),
        Action("mark-kind", "asterisk", "mark_kind", "mark kind", "mark this tensor in every layer that is shown"),
        Action("prune", "p", "prune", "prune", "prune the layer or the marked layers; again restores them"),
        Action("type", "t", "type", "type", "choose the type: row, marked, shown, layer, kind or all"),
        Action("untype", "T", "untype", "auto type", "back to auto (mix + rules): row or marked rows"),
        Action("base", "m", "base", "base", "choose the base file type (Q4_K_M …)"),
        Action("command", "colon", "command", "rule", "attn_v=q6_k · prune 26,29 · llama-quantize options"),
        Action("rules", "r", "rules", "rules", "list, change, order and delete rules"),
        Action("metadata", "D", "metadata", "metadata", "all metadata keys: search, read, edit, add, delete"),
        Action("undo", "u", "undo", "undo", "undo"),
        Action("redo", "ctrl+r", "redo", "redo", "redo"),
    ),
    "Measure": (
        Action("evaluate", "e", "evaluate", "evaluate", "measure the plan or its output: PPL, KLD, tasks, speed"),
        Action("fit", "F", "fit", "fit", "the types that lose least within a size; first measures what matters"),
        Action("bench", "L", "bench", "bench", "queue and trials: matrix runs, compare, plot, restore a plan, card"),
        Action("collect", "I", "collect", "collect", "collect an importance matrix from a text"),
        Action("heal", "H", "heal", "heal", "refit matrices to make up for the pruned layers, on a text"),
        Action("scan", "S", "scan", "prune-scan", "measure what removing each layer costs"),
    ),
    "Files": (
        Action("imatrix", "i", "imatrix", "imatrix", "load an importance matrix"),
        Action("save", "ctrl+s", "save", "save", "save the plan as a recipe"),
        Action("load", "o", "load", "load", "load a recipe, or the types of another GGUF; converts a checkpoint"),
        Action("write", "w", "write", "write", "write the new model, or show the running write"),
        Action("compare", "C", "compare", "compare", "compare with another GGUF: types, sizes, metadata, weights"),
        Action("copy-command", "y", "copy_command", "command", "show and copy the llama-quantize command (OSC 52)"),
    ),
    "Program": (
        Action("help", "question_mark,f1", "help", "help", "this help"),
        Action("palette", "ctrl+p", "palette", "palette", "every command by name"),
        Action("switch", "ctrl+t", "switch", "switch", "the next model, where several are open (surgeon A B)"),
        Action("stop", "x", "stop", "stop", "stop the job that runs, after a question; what is done is kept"),
        Action("suspend", "ctrl+z", "suspend", "suspend", "back to the shell; fg returns"),
        Action("redraw", "ctrl+l", "redraw", "redraw", "draw the screen anew, where another program wrote on it"),
        Action("interrupt", "ctrl+c", "interrupt", "interrupt", "say how to stop what runs, and how to quit"),
        Action("quit", "q,ctrl+q", "leave", "quit", "quit; the plan is kept"),
    ),
}
ACTIONS: tuple[Action, ...] = tuple(action for group in GROUPS.values() for action in group)
BY_ID: dict[str, Action] = {action.id: action for action in ACTIONS}

# The order of the key bar: what must be seen at 80 columns comes first.
BAR = (
    "prune type base command filter undo write help quit evaluate fit bench sort imatrix collect rules mark fold-all "
    "metric columns flat redo scan heal save load palette"
).split()

_SIGNS = {
    "question_mark": "?",
    "slash": "/",
    "colon": ":",
    "asterisk": "*",
    "exclamation_mark": "!",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "escape": "Esc",
    "space": "Space",
    "enter": "Enter",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "home": "Home",
    "end": "End",
    "f1": "F1",
}


def bindings() -> list[Binding]:
    """Priority bindings: they act before the next key is looked at, so that `/ffn` typed in one go is a filter."""
    return [
        Binding(action.keys, action.action, action.word, id=action.id, tooltip=action.help, show=False, priority=True)
        for action in ACTIONS
    ]


def key_sign(key: str) -> str:
    """A key as people write it: `^r`, `?`, `PgUp`."""
    if key.startswith("ctrl+"):
        return "^" + key[5:]
    return _SIGNS.get(key, key)


def keys_of(action: Action, keymap: dict[str, str]) -> list[str]:
    return [key_sign(key.strip()) for key in keymap.get(action.id, action.keys).split(",")]


def hints(keymap: dict[str, str], first: str = "") -> list[Hint]:
    """The key bar's hints; `first` comes before all others, when it is what is to be done now, and undo makes room for
    it: how to quit is seen at 80 columns."""
    order = list(BAR)
    if first:
        order.remove(first)
        order.insert(0, first)
        order.remove("undo")
        order.insert(order.index("quit") + 1, "undo")
    return [Hint(keys_of(BY_ID[id_], keymap)[0], BY_ID[id_].word, BY_ID[id_].action) for id_ in order]
