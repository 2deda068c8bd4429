"""`surgeon export`: a recipe as a llama-quantize command, and commands, type files and models as recipes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.options.parser import Parser
from surgeon.terminal import tell

if TYPE_CHECKING:
    from surgeon.plan.recipe import Recipe
    from surgeon.write_guard import Permit

EPILOG = """\
With --model every tensor is checked: the exit code is 1 when no llama-quantize command gives some tensor the type that
the recipe gives it. Other differences go to stderr.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="surgeon export",
        description="Translate a recipe to a llama-quantize command, or a command, file or model to a recipe.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("recipe", metavar="RECIPE", nargs="?", help="the recipe to translate")
    source.add_argument("--command", metavar="TEXT", help="make a recipe from a llama-quantize command line (quoted)")
    source.add_argument("--from-type-file", metavar="F", help="make a recipe from a --tensor-type-file")
    source.add_argument("--from-model", metavar="GGUF", help="make a recipe from the types of an existing model")
    parser.add_argument(
        "--model", metavar="IN", help="the model the recipe is for: checks the command tensor by tensor"
    )
    parser.add_argument("--imatrix", metavar="F", help="where the recipe's imatrix is now")
    parser.add_argument(
        "--tensor-type-file", metavar="F", type=Path, help="write the rules there instead of into the command"
    )
    parser.add_argument(
        "--type", metavar="TYPE", default="Q4_K_M", help="base TYPE for the rules of a type file (Q4_K_M)"
    )
    parser.add_argument("-o", "--output", metavar="F", help="OUT of the command, or the file a recipe is saved to")
    parser.add_argument("--overwrite", action="store_true", help="replace an older recipe or file of rules")
    options = parser.parse_args(arguments)
    if options.recipe is not None:
        return _tell_command(options)
    return _tell_recipe(_imported(options), options)


def _imported(options: argparse.Namespace) -> Recipe:
    from surgeon.llama_quantize.translation import from_command, from_model, from_type_file

    if options.command is not None:
        return from_command(options.command)
    if options.from_type_file is not None:
        return from_type_file(options.from_type_file, options.type)
    from surgeon.model.model import load_model

    model = load_model(options.from_model)
    with model.file:
        return from_model(model)


def _tell_recipe(recipe: Recipe, options: argparse.Namespace) -> int:
    from dataclasses import replace

    from surgeon.plan.recipe import file_sha256, save_recipe, to_toml

    if recipe.imatrix and Path(recipe.imatrix).exists():
        recipe = replace(recipe, imatrix_sha256=file_sha256(recipe.imatrix))
    if recipe.plan.pruned and recipe.plan.rules and not recipe.plan.compat:
        print("surgeon: note: in a recipe the rules see the layer numbers before pruning", file=sys.stderr)
    if options.output is None:
        print(to_toml(recipe), end="")
    else:
        save_recipe(recipe, options.output, _permit(options, recipe.imatrix))
    return 0


def _permit(options: argparse.Namespace, imatrix: str | None) -> Permit:
    """What is written is none of the files that were read."""
    from surgeon.gguf.file import shards_of
    from surgeon.write_guard import Permit

    named = (options.recipe, options.from_type_file, options.imatrix, imatrix)
    models = [shard for name in (options.from_model, options.model) if name for shard in shards_of(Path(name))]
    return Permit((*(Path(name) for name in named if name), *models), replace=options.overwrite)


def _tell_command(options: argparse.Namespace) -> int:
    from surgeon.llama_quantize.translation import export
    from surgeon.model.model import load_model
    from surgeon.moments.files import load_weighing
    from surgeon.plan.recipe import load_recipe
    from surgeon.whole_files import write_whole

    recipe = load_recipe(options.recipe)
    model = load_model(options.model) if options.model else None
    path = options.imatrix or recipe.imatrix
    imatrix = load_weighing(path, judged=True) if model is not None and path else None
    exported = export(recipe, options.model or "IN.gguf", options.output or "OUT.gguf", model, imatrix)
    if options.tensor_type_file is not None and exported.rules:
        rules = "".join(f"{rule}\n" for rule in exported.rules)
        write_whole(options.tensor_type_file, rules, permit=_permit(options, path))
        tell([exported.command(str(options.tensor_type_file))])
    else:
        tell([exported.command()])
    tell((f"surgeon: cannot be expressed: {text}" for text in exported.wrong), sys.stderr)
    tell((f"surgeon: note: {text}" for text in exported.remarks), sys.stderr)
    return 1 if exported.wrong else 0
