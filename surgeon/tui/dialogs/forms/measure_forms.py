"""What is asked before the engine runs: what to measure and on what, where to collect, what to scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import figures
from surgeon.engine.protocol import Engine, ImatrixJob, PruneScanJob
from surgeon.errors import SurgeonError, UsageError
from surgeon.fit.groups import groups_of
from surgeon.measure.collecting.imatrix_run import partial_of
from surgeon.measure.estimate import Estimate, of_collection, of_evaluation, of_fit, of_scan, scan_sets
from surgeon.measure.evaluation import Subject, Wanted, is_probed, task_kind
from surgeon.measure.speeds import Speeds
from surgeon.model.model import Model
from surgeon.moments.account import reckon, refuse_too_large
from surgeon.trials.records import is_unchanged
from surgeon.tui.answers import Answers
from surgeon.tui.dialogs.forms.form import Field, Form
from surgeon.tui.drawing.estimate_lines import estimate_lines
from surgeon.tui.drawing.spans import Line, clean, elide_start

if TYPE_CHECKING:
    from surgeon.measure.fitting.sensitivities import Sensitivities

TEXTS = (".txt", ".md", ".raw", ".text")
SAVE_EVERY = 5  # chunks between two states of the sums that are kept and shown
BATCH = 2048  # tokens at once
_ROWS = 4  # of lines that a form has at least, so that it does not jump as the first answers come
EVALUATE = (("ppl", "PPL"), ("kld", "KL divergence"), ("tasks", "tasks"), ("speed", "speed"))


@dataclass(frozen=True)
class Ground:
    """What estimates go by. cache: where bases and streams go; speeds: of earlier runs."""

    engine: Engine
    cache: Path
    speeds: Speeds


def path_of(text: str) -> Path:
    return Path(text).expanduser()


_LABELS = {"n_tasks": "of each", "count": "choose"}  # of fields that are not called as their answers are


def number_of(answers: Answers, key: str, default: int, least: int) -> int:
    """A whole number; empty for the default. Raises UsageError."""
    text = answers.get(key, "")
    if not text:
        return default
    number = figures.typed_number(text)
    if number is None or (number < least and number != default):
        raise UsageError(f"{_LABELS.get(key, key)}: {text!r:.60} must be a whole number ≥ {least}")
    return number


def tasks_field(answers: Answers) -> Field:
    help_ = "task files of llama-perplexity, with commas between"
    return Field("tasks", "tasks", answers.get("tasks", ""), help_, (), several=True)


def told(reckoned: Callable[[], Estimate], speeds: Speeds) -> list[Line]:
    """What a run will take, or why that cannot be said."""
    try:
        return estimate_lines(reckoned(), speeds)
    except SurgeonError as error:
        return [[(clean(str(error)), "warning")]]


def file_line(label: str, text: str) -> Line:
    """`text  306 kB`, or what is wrong with the path."""
    path = path_of(text)
    if not text:
        return [(f"{label}: a file is needed", "warning")]
    if path.is_file():
        return [(f"{label} ", "muted"), (figures.size(path.stat().st_size), "text")]
    return [(f"{label}: ", "muted"), ("is a folder: name a file in it" if path.is_dir() else "no such file", "warning")]


# --- measuring


def evaluate_form(subject: Subject, model: Model, answers: Answers, ground: Ground) -> Form:
    """What to measure on `subject`; answered by what `wanted_of` reads."""
    folder = f"{model.file.path.absolute().parent}/"
    fields = [
        Field("what", "measure", answers.get("what", "kld"), options=EVALUATE),
        Field("text", "text", answers.get("text", folder), "a text file", TEXTS),
        Field("chunks", "chunks", answers.get("chunks", "8"), "how many; -1 for the whole text"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
        tasks_field(answers),
        Field("n_tasks", "of each", answers.get("n_tasks", "100"), "how many tasks; 0 for all"),
    ]
    return Form(
        "measure", fields, lambda found: check_evaluation(found, subject, model, ground), do="measure", rows=_ROWS
    )


def wanted_of(answers: Answers) -> Wanted:
    """The answers as a Wanted. Raises SurgeonError, UsageError."""
    what = answers["what"].split()
    text = bool({"ppl", "kld"} & set(what))
    if "tasks" in what and not answers["tasks"]:
        raise UsageError("tasks: name a file in the formats of llama-perplexity, or switch tasks off with Space")
    wanted = Wanted(
        perplexity="ppl" in what,
        divergence="kld" in what,
        text=path_of(answers["text"]) if text else None,
        n_ctx=number_of(answers, "context", 512, 8),
        n_chunks=number_of(answers, "chunks", -1, 1),
        tasks=paths_of(answers["tasks"]) if "tasks" in what else (),
        n_tasks=number_of(answers, "n_tasks", 0, 0),
        speed="speed" in what,
    )
    if wanted.text is not None and (not answers["text"] or wanted.text.is_dir()):
        raise UsageError("text: is a folder: name a file in it" if answers["text"] else "text: a file is needed")
    wanted.check()
    return wanted


def paths_of(text: str) -> tuple[Path, ...]:
    """Of paths with commas between."""
    return tuple(path_of(part.strip()) for part in text.split(",") if part.strip())


def check_evaluation(answers: Answers, subject: Subject, model: Model, ground: Ground) -> tuple[bool, list[Line]]:
    """Whether it can begin, and what it will do."""
    lines = [subject_line(subject)]
    try:
        wanted = wanted_of(answers)
        kinds = [f"{clean(path.name)}: {task_kind(path)}" for path in wanted.tasks]
        estimate = of_evaluation(subject, wanted, model, ground.engine, ground.cache)
    except (SurgeonError, ValueError) as error:
        return False, [*lines, [(clean(str(error)), "warning")]]
    if is_probed(subject, wanted) and subject.resolution is not None:
        size = figures.size(subject.resolution.total_bytes)
        lines = [[("the plan, ", "strong"), (f"{size}, measured without writing it", "muted")]]
    if wanted.text is not None:
        lines.append(file_line("text", answers["text"]))
    if kinds:
        lines.append([(" · ".join(kinds), "muted")])
    if wanted.speed:
        lines.append([("speed: pp512 and tg128, three times each", "muted")])
    return True, [*lines, *estimate_lines(estimate, ground.speeds)]


def subject_line(subject: Subject) -> Line:
    made = subject.resolution
    if subject.output is not None:
        return [(elide_start(clean(str(subject.output)), 60), "strong")]
    if made is not None and is_unchanged(made.plan):
        return [("the model as it is: nothing has been changed yet", "strong")]
    size = figures.size(made.total_bytes) if made is not None else ""
    return [("the plan, ", "strong"), (f"{size} in a temporary file that is removed afterwards", "muted")]


# --- collecting


def collect_form(model: Model, answers: Answers, ground: Ground) -> Form:
    source = model.file.path.absolute()
    out = answers.get("out", str(source.with_name(f"{source.stem}.imatrix.gguf")))
    resume = "resume" if partial_of(Path(out)).exists() else ""
    fields = [
        Field("text", "text", answers.get("text", f"{source.parent}/"), "calibration text", TEXTS),
        Field("chunks", "chunks", answers.get("chunks", "-1"), "how many; -1 for the whole text"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
        Field("out", "save as", out, "GGUF, or .dat for the old format", (".gguf", ".dat")),
        Field(
            "how",
            "also",
            " ".join(filter(None, (answers.get("how", "").replace("resume", ""), resume))),
            options=(
                ("output", "output.weight"), ("special", "special tokens"), ("moments", "second moments"),
                ("resume", "resume"),
            ),
        ),
    ]  # fmt: skip
    return Form(
        "collect an imatrix", fields, lambda found: check_collection(found, model, ground), do="collect", rows=_ROWS
    )


def moments_line(model: Model, folder: Path) -> tuple[bool, Line]:
    """What second moments take, and whether that is there."""
    account = reckon(model)
    try:
        refuse_too_large(account, folder, len(model.layers))
    except SurgeonError as error:
        return False, [(clean(str(error)), "warning")]
    memory, file = figures.memory(account.memory), figures.size(account.file)
    return True, [(f"second moments of {account.inputs} inputs: {memory} of memory, {file} on disk", "muted")]


def check_collection(answers: Answers, model: Model, ground: Ground) -> tuple[bool, list[Line]]:
    lines = [file_line("text", answers["text"])]
    out = path_of(answers["out"])
    good = path_of(answers["text"]).is_file()
    try:
        job = collect_job(answers, Path())
    except UsageError as error:
        return False, [*lines, [(str(error), "warning")]]
    if not answers["out"] or out.is_dir() or not out.parent.is_dir():
        return False, [*lines, [("save as: a file name in an existing folder", "warning")]]
    if partial_of(out).exists():
        goes_on = "resume" in answers["how"].split()
        said = (
            "an interrupted collection is there; it will be resumed"
            if goes_on
            else "what was collected before is discarded"
        )
        lines.append([(said, "accent" if goes_on else "warning")])
    moments = "moments" in answers["how"].split()
    if moments:
        fits, line = moments_line(model, out.parent)
        good = good and fits
        lines.append(line)
    if out.exists():
        lines.append([("save as: already exists; you will be asked", "warning")])
    if good:
        account = reckon(model) if moments else None
        lines += told(lambda: of_collection(model, job, ground.engine, out.parent, account), ground.speeds)
    return good, lines


def collect_job(answers: Answers, model: Path) -> ImatrixJob:
    """The engine's job. Raises UsageError."""
    how = answers["how"].split()
    return ImatrixJob(
        model=str(model),
        text=str(path_of(answers["text"])),
        n_ctx=number_of(answers, "context", 512, 8),
        n_chunks=number_of(answers, "chunks", -1, 1),
        process_output="output" in how,
        parse_special="special" in how,
        n_batch=BATCH,
        save_every=SAVE_EVERY,
    )


# --- scanning


ORDER = (("pairs", "two neighbours at a time"), ("healed", "measured after healing"))  # else one by one, plain
HEAL_CHUNKS = 24  # that a healed scan fits on, as `surgeon prune-scan` does


def scan_form(model: Model, answers: Answers, ground: Ground) -> Form:
    folder = f"{model.file.path.absolute().parent}/"
    fields = [
        Field("text", "text", answers.get("text", folder), "a text file", TEXTS),
        Field("chunks", "chunks", answers.get("chunks", "4"), "how many for each layer"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
        Field("count", "choose", answers.get("count", ""), "how many layers to prune; empty: measure each alone"),
        Field("how", "chosen", answers.get("how", ""), options=ORDER),
    ]

    def check(found: Answers) -> tuple[bool, list[Line]]:
        try:
            job, (count, order) = scan_job(model, found), count_of(model, found)
        except UsageError as error:
            return False, [[(str(error), "warning")]]
        lines: list[Line] = [file_line("text", found["text"]), [(scan_words(job, count, order), "muted")]]
        there = path_of(found["text"]).is_file()
        if there:
            lines += told(lambda: of_scan(model, job, ground.engine, count, order), ground.speeds)
        return there, lines

    return Form("prune-scan: what removing a layer costs", fields, check, do="scan", rows=_ROWS)


def scan_words(job: PruneScanJob, count: int, order: str) -> str:
    """What is measured; that it can be stopped."""
    sets, rounds = scan_sets(len(job.layer_sets), count, order)
    chunks = "1 chunk" if job.n_chunks == 1 else f"{job.n_chunks} chunks"
    if count:
        return f"about {sets} sets of layers, {chunks} each{', healed first' if job.n_fit else ''}; it can be resumed"
    return f"{sets} layers, one left out at a time: {(sets + rounds) * job.n_chunks} chunks; it can be resumed"


def count_of(model: Model, answers: Answers) -> tuple[int, str]:
    """How many layers a scan shall choose (0: none), and in which order. Raises UsageError."""
    count = number_of(answers, "count", 0, 0)
    if count >= len(model.layers):
        raise UsageError(f"choose: the model has {len(model.layers)} layers, and one must stay")
    return count, "pairs" if "pairs" in answers.get("how", "").split() else "greedy"


def scan_job(model: Model, answers: Answers) -> PruneScanJob:
    """The engine's job. Raises UsageError."""
    healed = "healed" in answers.get("how", "").split() and number_of(answers, "count", 0, 0) > 0
    return PruneScanJob(
        model=str(model.file.path),
        text=str(path_of(answers["text"])),
        layer_sets=[[layer.index] for layer in model.layers],
        n_ctx=number_of(answers, "context", 512, 8),
        n_chunks=number_of(answers, "chunks", 4, 1),
        n_fit=HEAL_CHUNKS if healed else 0,
    )


# --- fitting


def fit_form(model: Model, answers: Answers, ground: Ground, work: Callable[[Answers], Sensitivities]) -> Form:
    """On what the sensitivities are measured. work: what that measures."""
    folder = f"{model.file.path.absolute().parent}/"
    fields = [
        Field("text", "text", answers.get("text", folder), "calibration text", TEXTS),
        Field("chunks", "chunks", answers.get("chunks", "4"), "how many for each probe"),
        Field("context", "context", answers.get("context", "512"), "tokens per chunk"),
    ]
    # What is measured already is read from files, so no more often than it must be.
    weights: list[int] = []
    estimates: dict[tuple[str, ...], Estimate] = {}

    def check(found: Answers) -> tuple[bool, list[Line]]:
        try:
            chunks = number_of(found, "chunks", 4, 1)
            number_of(found, "context", 512, 8)
        except UsageError as error:
            return False, [[(str(error), "warning")]]
        probes = 2 * len(groups_of(model)) + 1
        each = "1 chunk" if chunks == 1 else f"{chunks} chunks"
        said = f"{probes} probes of {each} each, once for this model; then every size is quick"
        lines: list[Line] = [file_line("text", found["text"]), [(said, "muted")]]
        if not path_of(found["text"]).is_file():
            return False, lines
        key = tuple(found.values())
        try:
            sensitivities = work(found)
            weights[:] = weights or [sensitivities.weights_left()]
            estimates[key] = estimates.get(key) or of_fit(sensitivities, ground.cache, weights[0])
        except SurgeonError as error:
            return False, [*lines, [(clean(str(error)), "warning")]]
        return True, [*lines, *estimate_lines(estimates[key], ground.speeds)]

    return Form("fit: measure what matters", fields, check, do="measure", rows=_ROWS)
