"""`surgeon apply RECIPE IN OUT`: run a recipe without the screen."""

from __future__ import annotations

from pathlib import Path

from surgeon.commands.options.engine_options import add_scheduler_option
from surgeon.commands.options.parser import Parser


def _parser() -> Parser:
    parser = Parser(
        prog="surgeon apply",
        description="Write what a recipe makes of IN. The same recipe, model and imatrix give the same bytes.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a TOML file, saved on the screen or by export")
    parser.add_argument("input", metavar="IN", type=Path, help="a GGUF file, or a shard of one")
    parser.add_argument("output", metavar="OUT", type=Path, nargs="?", help="the new file (not needed with --dry-run)")
    parser.add_argument("--imatrix", metavar="F", help="where the recipe's imatrix is now")
    parser.add_argument("--heal", metavar="F", help="a heal file, where the recipe's is now, or a text to heal on")
    parser.add_argument(
        "--save-imatrix", metavar="F", type=Path, help="also save the imatrix renumbered as the layers are"
    )
    parser.add_argument("--moments", metavar="F", help="where the recipe's second moments lie now")
    parser.add_argument("--save-moments", metavar="F", type=Path, help="also save them renumbered as the layers are")
    add_scheduler_option(parser, "write over")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="default: one per core")
    parser.add_argument("--dry-run", action="store_true", help="print types and sizes; write nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout: tensors, total_bytes, bpw")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    parser.add_argument("--resume", action="store_true", help="continue a run that was cut off")
    return parser


def main(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.output is None and not options.dry_run:
        parser.error("OUT is needed, or --dry-run")

    from surgeon.commands.headless import run_job
    from surgeon.llama_quantize.options import QuantizeCommand
    from surgeon.plan.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    return run_job(
        QuantizeCommand(
            plan=recipe.plan,
            input=options.input,
            output=options.output or options.input,
            imatrix=options.imatrix or recipe.imatrix,
            imatrix_sha256=recipe.imatrix_sha256,
            threads=options.threads or recipe.settings.threads,
            max_buffer_bytes=recipe.settings.max_buffer_bytes,
            split_max_bytes=recipe.settings.split_max_bytes,
            save_imatrix=options.save_imatrix,
            heal=options.heal,
            scheduler=options.scheduler,
            moments=options.moments or recipe.moments,
            moments_digest=recipe.moments_digest,
            save_moments=options.save_moments,
            dry_run=options.dry_run,
            json=options.json,
            overwrite=options.overwrite,
            resume=options.resume,
        )
    )
