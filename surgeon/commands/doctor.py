"""`surgeon doctor`: what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.commands.options.engine_options import add_scheduler_option
from surgeon.commands.options.parser import Parser
from surgeon.figures import memory, size
from surgeon.json_text import json_text
from surgeon.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from surgeon.engine.protocol import Engine
    from surgeon.measure.doctor import Section

DESCRIPTION = """What this machine can do: processor and kernels, llama.cpp with its devices, folders with free space,
terminal. Nothing is changed. Exit code 1 when something is missing."""


def main(arguments: list[str]) -> int:
    parser = Parser(prog="surgeon doctor", description=DESCRIPTION)
    parser.add_argument("--llama-lib", metavar="DIR", help="a llama.cpp build to use (or $LLAMA_CPP_LIB_DIR)")
    add_scheduler_option(parser, "look also at")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)

    from surgeon.engine.protocol import Engine
    from surgeon.measure.doctor import examine

    engine = Engine(options.llama_lib)
    sections = [*examine(engine), *_fleet(options.scheduler, engine)]
    if options.json:
        print(json_text({section.name: {**section.facts, "problem": section.problem} for section in sections}))
    else:
        tell(line for section in sections for line in _lines(section))
    return 1 if any(section.problem for section in sections) else 0


def _fleet(given: str | None, engine: Engine) -> list[Section]:
    """The workers of the scheduler that `--scheduler` or the config file names, with what is wrong with each."""
    from surgeon import __version__
    from surgeon.errors import SurgeonError
    from surgeon.fleet.settings import scheduler_address
    from surgeon.measure.doctor import Section

    address = scheduler_address(given)
    if address is None:
        return []
    from surgeon.fleet.cluster import greetings
    from surgeon.fleet.order import Greeting

    try:
        answers = greetings(address, engine)
    except SurgeonError as error:
        return [Section("fleet", {"scheduler": address}, str(error))]
    workers, wrong = [], "" if answers else "no worker is connected"
    for name, one in answers.items():
        if not isinstance(one, Greeting):
            workers.append(name)
            wrong = wrong or f"worker {name}: surgeon does not run there ({one})"
            continue
        workers.append(f"{one.name}: surgeon {one.surgeon}, {one.build or 'no llama.cpp'}")
        wrong = wrong or (f"worker {one.name}: {one.problem}" if one.problem else "")
        if one.surgeon != __version__:
            wrong = wrong or f"worker {one.name}: has another surgeon than this, {__version__}"
    return [Section("fleet", {"scheduler": address, "workers": workers}, wrong)]


def _lines(section: Section) -> Iterator[str]:
    title = section.name
    for key, value in section.facts.items():
        for text in _texts(value):
            yield f"{title:<13} {key:<9} {text}"
            title = key = ""
    if section.problem:
        yield f"{title:<13} problem   {section.problem}"


def _texts(value: Any) -> list[str]:
    """One line per entry of a list; what is free on the disk of a folder, and of the memory of a device."""
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    if isinstance(value, dict):
        free, total = value.get("free"), value.get("total")
        name = ": ".join(str(value[key]) for key in ("folder", "name", "description") if key in value)
        written = size if "folder" in value else memory
        room = f"{written(free)} free" if free else ""
        return [", ".join(filter(None, (name, room + (f" of {written(total)}" if room and total else ""))))]
    return [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)]
