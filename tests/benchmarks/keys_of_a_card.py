"""How many keys a model card takes: the program runs in tmux, and what is sent to it is counted.

    python tests/benchmarks/keys_of_a_card.py MODEL FILE… [--checkout FOLDER] [--only NAME …]

MODEL: a small F16 GGUF of twelve layers or more; FILEs: calib-mixed.txt, novels-heldout-test.txt, and task files of
llama-perplexity whose names begin with arc, hella, mmlu, truth and wino. The program starts in a new folder with copies
of all. --checkout: the sources to run, of commit 7593e70 for the sequences `before-…`. A key held with another is one
key, and so is a paste. The recipe is that of a whole card: importance matrix, the unchanged model measured, types by
tensor and by layer, two layers pruned; twelve base types written, with PPL, KLD, five tasks and speed; the card.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FOUR, OTHER_FOUR = "q4_k_m q5_k_m q6_k q8_0", "iq3_m iq4_nl q4_k_m q6_k"
EIGHT_MORE = "iq3_m iq3_s iq4_nl q3_k_l q3_k_m q3_k_s q4_k_s q5_k_s"
BY_LAYER = r"\.([0-9]|1[01257]|31)\.attn_k=q4_k"
COMMAND = (
    "llama-quantize --imatrix model-F16.imatrix.gguf --tensor-type attn_v=q6_k "
    f"--tensor-type '{BY_LAYER}' --prune-layers 7,9 model-F16.gguf out.gguf Q4_K_M"
)

# A sequence has words that are typed letter by letter, keys as tmux calls them, ⇥ for the key that completes a path,
# @ for the paste of COMMAND; after < comes what the screen must show before it goes on.
KEYS = {"Enter", "Tab", "Space", "Up", "Down", "Right", "C-u"}
FIGURES = "Up Space Right Right Space Right Space Down"  # PPL, tasks and speed as well as KLD
TASKS = "Down Down Down a ⇥ , h ⇥ , mm ⇥ , t ⇥ , w ⇥ Down C-u 20"  # of each
IMATRIX = "I c ⇥ Enter <close Enter"
UNCHANGED = f"e {FIGURES} n ⇥ {TASKS} Enter <close Enter"
RULES = f": attn_v=q6_k Space {BY_LAYER} Enter : prune Space 7,9 Enter"


def one_by_one(types: str, text: str = "") -> str:
    """Each type chosen, written, measured; text: typed into the first form, the others remember it."""
    each = [f": {name} Enter w Enter <written Enter e {{}} Enter <close Enter" for name in types.split()]
    return " ".join([each[0].format(text), *(steps.format("") for steps in each[1:]), "L m Enter"])


def matrix(types: str = "", text: str = "", begin: str = "") -> str:
    """All types in one run: the four that the form begins with, or what is typed; begin: keys before that."""
    named = f"Up Up {begin} {' Space '.join(types.split())} Down Down" if types else ""
    return f"L a {named} {text} Enter"


SEQUENCES = {
    "before-four": one_by_one(FOUR, "n ⇥"),
    "after-four": matrix(text="n ⇥"),
    "after-other-four": matrix(OTHER_FOUR, "n ⇥", "C-u"),
    "before-recipe": f"{IMATRIX} {UNCHANGED} {RULES} {one_by_one(f'{EIGHT_MORE} {FOUR}')}",
    "after-recipe": f"{IMATRIX} {UNCHANGED} {RULES} {matrix(EIGHT_MORE, begin='Space')}",
    "after-recipe-pasted": f"{IMATRIX} {UNCHANGED} : @ Enter {matrix(EIGHT_MORE, begin='Space')}",
}


class Terminal:
    """The program in tmux; it counts the keys sent to it."""

    def __init__(self, folder: Path, checkout: Path, complete: str) -> None:
        self.keys, self.complete, self.socket = 0, complete, f"keys{os.getpid()}"
        environment = {
            "PYTHONPATH": f"{checkout}:{checkout / 'kernels'}",
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder),
        }
        given = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        command = f"cd {shlex.quote(str(folder))} && exec {sys.executable} -m surgeon model-F16.gguf"
        self.tmux("-f", os.devnull, "new-session", "-d", "-x", "120", "-y", "40", *given, command)

    def tmux(self, *words: str) -> str:
        return subprocess.run(["tmux", "-L", self.socket, *words], capture_output=True, text=True, check=True).stdout

    def play(self, sequence: str) -> None:
        for word in sequence.split():
            if word.startswith("<"):
                self.wait(word[1:])
            elif word == "@":
                self.tmux("set-buffer", COMMAND)
                self.press("paste-buffer", "-p")
            elif word in KEYS or word == "⇥":
                self.press("send-keys", self.complete if word == "⇥" else word)
            else:
                for letter in word:
                    self.press("send-keys", "-l", letter)

    def press(self, *words: str) -> None:
        self.tmux(*words)
        self.keys += 1
        time.sleep(0.5 if self.complete == "Right" else 0.1)  # the first version mixed up keys that came faster

    def wait(self, text: str, seconds: float = 1800.0) -> None:
        """Until the frame at the screen's lower half says `text`."""
        end = time.monotonic() + seconds
        while text not in (shown := self.tmux("capture-pane", "-p")):
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} never came:\n{shown}")
            time.sleep(0.2)


def play(name: str, model: Path, files: list[Path], checkout: Path) -> int:
    """The number of keys until the card is there."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copyfile(model, folder / "model-F16.gguf")
        for file in files:
            shutil.copyfile(file, folder / file.name)
        terminal = Terminal(folder, checkout, "Right" if name.startswith("before") else "Tab")
        try:
            terminal.wait("blk.0")
            terminal.play(SEQUENCES[name])
            while not (cards := list(folder.glob("*.md"))):
                terminal.tmux("has-session")  # fails where the program is gone
                time.sleep(0.5)
            print(terminal.tmux("capture-pane", "-p"), cards[0].read_text(encoding="utf-8"), sep="\n", file=sys.stderr)
            return terminal.keys
        finally:
            terminal.tmux("kill-server")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--checkout", type=Path, default=HERE.parent.parent)
    parser.add_argument("--only", nargs="+", choices=SEQUENCES, default=[*SEQUENCES])
    options = parser.parse_args()
    for name in options.only:
        print(f"{name}: {play(name, options.model, options.files, options.checkout)} keys", flush=True)


if __name__ == "__main__":
    main()
