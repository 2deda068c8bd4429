"""`surgeon perplexity`: llama-perplexity's command line: perplexity, KL divergence, tasks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from surgeon.commands.options.engine_options import (
    add_engine_options,
    add_scheduler_option,
    add_window_options,
    engine_of,
    fleet_of,
    log_shown,
    require_file,
)
from surgeon.commands.options.parser import Once, Parser
from surgeon.commands.options.recording import add_journal_options, recording_of
from surgeon.commands.printing.progress_line import ProgressLine
from surgeon.errors import UsageError
from surgeon.json_text import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from surgeon.engine.protocol import Job, Message

DESCRIPTION = """Perplexity of MODEL over TEXT, with llama-perplexity's windows and figures. With --kl-divergence-base
FILE the log-probabilities are saved; with --kl-divergence too, MODEL is compared with the saved ones. Or the score on a
task file in llama-perplexity's formats. Of embedding models --embedding ORIGINAL: the cosine of both models'
embeddings."""
_TASKS = {"hellaswag": 400, "winogrande": 0, "multiple_choice": 0}  # and how many tasks without an option
_KLD_LINES = ("max", "99.9", "99", "95", "90", "50", "10", "5", "1", "0.1", "min")
_DELTA_P_LINES = ("max", "99.9", "99", "95", "90", "75", "50", "25", "10", "5", "1", "0.1", "min")
_NAMES = {"max": "Maximum", "min": "Minimum", "50": "Median "}


def _parser() -> Parser:
    parser = Parser(prog="surgeon perplexity", description=DESCRIPTION)
    add_engine_options(parser)
    add_window_options(parser)
    parser.add_argument("-f", "--file", action=Once, metavar="TEXT", help="the text, or the task file")
    parser.add_argument("-bf", "--binary-file", metavar="FILE", help="the task file of --multiple-choice")
    parser.add_argument("--ppl-stride", type=int, default=0, metavar="N", help="windows every N tokens")
    parser.add_argument(
        "--kl-divergence-base", "--save-all-logits", metavar="FILE", help="log-probabilities of the base"
    )
    parser.add_argument("--kl-divergence", action="store_true", help="compare with the base")
    parser.add_argument(
        "--embedding",
        metavar="ORIGINAL",
        help="cosine of the embeddings of each line of TEXT with those of the model ORIGINAL (--chunks: lines)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older FILE of --kl-divergence-base")
    parser.add_argument("-np", "--parallel", type=int, help=argparse.SUPPRESS)  # llama-perplexity needs it for tasks
    for task, default in _TASKS.items():
        option = f"--{task.replace('_', '-')}"
        parser.add_argument(option, action="store_true", help=f"score the {option[2:]} tasks of the file")
        parser.add_argument(
            f"{option}-tasks", type=int, default=default, metavar="N", help=f"how many ({default or 'all'})"
        )
    add_scheduler_option(parser)
    add_journal_options(parser)
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    recording = recording_of(options)
    values = _embeddings(options) if options.embedding else _measure(_job(options), options)
    values = {"model": options.model, **values}
    print(json_text(values) if options.json else _report(values))
    if recording is not None:
        recording.keep(values, text=_measured_on(options) or options.kl_divergence_base or "")
    return 0


def _measured_on(options: argparse.Namespace) -> str | None:
    """The text or task file; -bf is for multiple choice alone, as in llama-perplexity."""
    found: str | None = (options.binary_file if options.multiple_choice else None) or options.file
    return found


def _job(options: argparse.Namespace) -> Job:
    from surgeon.engine.protocol import DivergenceJob, PerplexityJob, TaskJob

    batch, ubatch = options.batch_size, options.ubatch_size
    tasks = [task for task in _TASKS if getattr(options, task)]
    if len(tasks) + options.kl_divergence > 1:
        raise UsageError("one of --kl-divergence, --hellaswag, --winogrande, --multiple-choice at a time")
    if tasks:
        file = _measured_on(options)
        if file is None:
            raise UsageError(f"--{tasks[0].replace('_', '-')} needs its task file (-f, or -bf for multiple choice)")
        count = getattr(options, f"{tasks[0]}_tasks")
        name = tasks[0].replace("_", "-")
        return TaskJob(options.model, name, require_file(file), count, options.ctx_size, batch, ubatch)
    text = require_file(options.file) if options.file else None
    if options.kl_divergence:
        if options.kl_divergence_base is None:
            raise UsageError("--kl-divergence needs --kl-divergence-base FILE, saved from the model to compare with")
        return DivergenceJob(
            options.model, require_file(options.kl_divergence_base), text, batch, ubatch, options.chunks
        )
    if text is None:
        raise UsageError("-f TEXT is missing")
    return PerplexityJob(
        options.model,
        text,
        options.ctx_size,
        batch,
        ubatch,
        options.chunks,
        options.ppl_stride,
        options.kl_divergence_base,
    )


def _embeddings(options: argparse.Namespace) -> dict[str, Any]:
    from surgeon.measure.embeddings import Comparison

    others = [task for task in _TASKS if getattr(options, task)]
    if others or options.kl_divergence or options.kl_divergence_base or options.ppl_stride or options.scheduler:
        raise UsageError("--embedding is measured alone, on this machine: leave other measures and --scheduler away")
    if options.file is None:
        raise UsageError("-f TEXT is missing: each of its lines is embedded")
    original, text = require_file(options.embedding), require_file(options.file)
    compared = Comparison(options.model, original, text, options.ctx_size, options.chunks)
    return {"original": original, **_figures(compared.messages(engine_of(options)), "embeddings")}


def _measure(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    from surgeon.engine.client import EngineRun, perplexity
    from surgeon.engine.protocol import DivergenceJob, PerplexityJob

    engine = engine_of(options)
    if isinstance(job, PerplexityJob | DivergenceJob):
        with fleet_of(options.scheduler, engine) as fleet:
            if fleet is not None:
                from surgeon.fleet.evaluation import evaluated

                return _figures(evaluated(fleet, job, overwrite=options.overwrite), "perplexity")
    elif options.scheduler:
        raise UsageError("--scheduler: tasks are scored on this machine; leave the option away")
    run = EngineRun(engine, job)
    with log_shown(options, run):
        what = "perplexity" if isinstance(job, PerplexityJob | DivergenceJob) else "tasks"
        return _figures(perplexity(run, overwrite=options.overwrite), what)


def _figures(messages: Iterable[Message], what: str) -> dict[str, Any]:
    """Those of Finished, and which llama.cpp it was."""
    from surgeon.engine.protocol import Finished, Loaded

    values: dict[str, Any] = {}
    for message in ProgressLine(what, "done").watch(messages):
        if isinstance(message, Loaded):
            values["engine"] = message.engine
        elif isinstance(message, Finished):
            values.update(message.values)
    return values


def _report(values: dict[str, Any]) -> str:
    if "task" in values:
        return _task_report(values)
    if "mean_cosine" in values:
        mean, error, lowest = (values[key] for key in ("mean_cosine", "mean_cosine_error", "min_cosine"))
        return f"Mean cosine: {mean:.6f} ± {error:.6f} over {values['n_chunks']} lines, the lowest {lowest:.6f}"
    if "mean_kld" not in values:
        return f"Final estimate: PPL = {values['ppl']:.4f} +/- {values['ppl_error']:.5f}"
    return "\n".join([*_perplexity_lines(values), "", *_kld_lines(values), "", *_delta_p_lines(values)])


def _task_report(values: dict[str, Any]) -> str:
    score, n = values["score"], values["n_tasks"]
    if values["task"] == "hellaswag":
        interval = f"[{values['score_low']:.4f}%, {values['score_high']:.4f}%]"
        return f"{n} tasks: acc_norm {score:.8f}%  95% confidence interval {interval}"
    lines = [f"Final score over {n} tasks: {score:.4f} +/- {values['score_error']:.4f}"]
    if "random_chance" in values:
        lines.append(f"Random chance: {values['random_chance']:.4f}")
    if "score_corrected" in values:
        lines.append(f"Corrected for llama-perplexity's short-sentence bug: {values['score_corrected']:.4f}")
    return "\n".join(lines)


def _perplexity_lines(values: dict[str, Any]) -> list[str]:
    def line(name: str, key: str) -> str:
        return f"{name:<30}: {values[key]:10.6f} ± {values[key + '_error']:10.6f}"

    return [
        "====== Perplexity statistics ======",
        line("Mean PPL(Q)", "ppl"),
        line("Mean PPL(base)", "ppl_base"),
        f"{'Cor(ln(PPL(Q)), ln(PPL(base)))':<30}: {100 * values['correlation']:6.2f}%",
        line("Mean ln(PPL(Q)/PPL(base))", "ln_ppl_ratio"),
        line("Mean PPL(Q)/PPL(base)", "ppl_ratio"),
        line("Mean PPL(Q)-PPL(base)", "ppl_difference"),
    ]


def _kld_lines(values: dict[str, Any]) -> list[str]:
    head = f"Mean    KLD: {values['mean_kld']:10.6f} ± {values['mean_kld_error']:10.6f}"
    rows = [f"{_NAMES.get(q, q + '%'):<7} KLD: {values[f'kld_{q}']:10.6f}" for q in _KLD_LINES]
    return ["====== KL divergence statistics ======", head, *rows]


def _delta_p_lines(values: dict[str, Any]) -> list[str]:
    def percent(key: str) -> str:
        return f"{100 * values[key]:6.3f} ± {100 * values[key + '_error']:6.3f} %"

    rows = [f"{_NAMES.get(q, q + '%'):<7} Δp: {100 * values[f'delta_p_{q}']:6.3f}%" for q in _DELTA_P_LINES]
    return [
        "====== Token probability statistics ======",
        f"Mean    Δp: {percent('mean_delta_p')}",
        *rows,
        f"RMS Δp    : {percent('rms_delta_p')}",
        f"Same top p: {percent('same_top')}",
    ]
