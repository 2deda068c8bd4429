"""`surgeon fit --ladder`: a family of sizes, each with recipe, figures and file, and the card of all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.commands.printing.progress_line import StandingLine
from surgeon.errors import UsageError
from surgeon.json_text import json_text

if TYPE_CHECKING:
    from surgeon.fit.allocation import Allocator, Fit
    from surgeon.measure.fitting.sensitivities import Sensitivities
    from surgeon.measure.probing import Prober


def read_ladder(text: str) -> list[float]:
    """`2.5,3,4` in ascending order. Raises UsageError."""
    try:
        steps = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        steps = []
    if not steps or steps[0] <= 0:
        raise UsageError(f"--ladder {text}: bits per weight, separated by commas: 2.5,3,4.25")
    return steps


def run_ladder(options: argparse.Namespace, allocator: Allocator, sensitivities: Sensitivities) -> None:
    """Recipes, figures, files and the card; one line per step on stdout."""
    from surgeon.commands.fit_check import checked_fit
    from surgeon.measure.fitting.ladder import Ladder, Rung
    from surgeon.measure.probing import Text
    from surgeon.trials.journal import Journal
    from surgeon.trials.tables import markdown

    prober, stem, steps = sensitivities.prober, Path(options.model).stem, read_ladder(options.ladder)
    sizes = {step: allocator.bytes_at(step) for step in steps}
    fits = {step: checked_fit(sensitivities, allocator, size, "--ladder")[0] for step, size in sizes.items()}
    rungs = {
        step: Rung(
            f"{stem} {step:g} bpw",
            fit.resolution,
            options.write / f"{stem}-{step:g}bpw.gguf" if options.write else None,
        )
        for step, fit in fits.items()
    }
    for step, fit in fits.items():
        _save(fit, prober, options.output / f"{stem}-{step:g}bpw.toml", replace=options.overwrite)
    ladder = Ladder(prober, Journal.of_model(Path(options.model)), tuple(rungs.values()), options.overwrite)
    if options.held_out:
        text = Text(Path(options.held_out), options.ctx_size, options.held_out_chunks)
        for _ in StandingLine().watch(ladder.measure(text)):
            pass
    for _ in StandingLine().watch(ladder.write()):
        pass
    trials = [trial for rung in rungs.values() if (trial := ladder.trial(rung)) is not None]
    if trials:
        _save_card(options.output / f"{stem}-card.md", markdown(trials), options)
    lines = []
    for step, fit in fits.items():
        trial = ladder.trial(rungs[step])
        lines.append((step, fit, trial.measured.figures if trial else {}))
    _print(lines, options)


def _save_card(path: Path, text: str, options: argparse.Namespace) -> None:
    """Write the card, also over an earlier one of this kind; any other file only with --overwrite."""
    from surgeon.gguf.file import shards_of
    from surgeon.whole_files import write_whole
    from surgeon.write_guard import Permit

    ours = path.is_file() and path.read_bytes().splitlines()[:1] == text.encode().splitlines()[:1]
    permit = Permit((*shards_of(Path(options.model)), Path(options.file)), replace=ours or options.overwrite)
    write_whole(path, text, permit=permit)


def _save(fit: Fit, prober: Prober, path: Path, *, replace: bool) -> None:
    """Write a recipe, or leave one alone that says the same. Raises UsageError for another one."""
    from surgeon.commands.printing.fit_report import recipe_of
    from surgeon.plan.recipe import load_recipe, save_recipe
    from surgeon.write_guard import Permit

    if path.exists() and not replace:
        if load_recipe(path).plan.types == fit.plan.types:
            return
        raise UsageError(f"{path}: already exists with other types; choose another folder or pass --overwrite")
    save_recipe(recipe_of(fit, prober.imatrix), path, Permit(prober.model.file.paths, replace=replace))


def _print(lines: list[tuple[float, Fit, dict[str, float]]], options: argparse.Namespace) -> None:
    if options.json:
        rows = [
            {"bpw": step, "bytes": fit.resolution.total_bytes, "predicted_kld": fit.predicted.kld, "figures": figures}
            for step, fit, figures in lines
        ]
        print(json_text(rows))
        return
    for step, fit, figures in lines:
        known = "mean_kld" in figures
        measured = f"  measured {figures['mean_kld']:.5f} ± {figures['mean_kld_error']:.5f}" if known else ""
        predicted = f"predicted {fit.predicted.kld:.5f} ± {fit.predicted.error:.5f}"
        print(f"{step:g} bpw: {fit.resolution.total_bytes} bytes  KLD {predicted}{measured}")
