"""`--heal F` of quantize and apply: a heal file as it is, or a text to heal on first."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.model.model import Model
from surgeon.plan.plan import Healing, Plan


def healed_plan(plan: Plan, model: Model, heal: str | None, *, per_column: float, may_run: bool, threads: int) -> Plan:
    """The plan with the heal file that `heal` names; a text is healed on, once, and the file kept in the cache.

    Raises SurgeonError where the file cannot be read, and for a text where nothing may be run.
    """
    if heal is None:
        return plan
    from surgeon.healing.heal_file import is_heal_file, load_heal

    path = Path(heal)
    if is_heal_file(path) and plan.healing is not None and load_heal(path).id != plan.healing.id:
        raise SurgeonError(f"{heal}: is not the heal file the recipe was made with (its id differs)")
    if not is_heal_file(path):
        if not may_run:
            raise SurgeonError(f"{heal}: a dry run heals nothing; make a heal file first with surgeon heal")
        path = _healed_on(path, plan, model, per_column, threads)
    return replace(plan, healing=Healing(str(path), load_heal(path).id))


def _healed_on(text: Path, plan: Plan, model: Model, per_column: float, threads: int) -> Path:
    from surgeon.commands.heal import run_shown
    from surgeon.engine.protocol import Engine
    from surgeon.folders import cache_folder
    from surgeon.gguf.identity import open_identity
    from surgeon.measure.healing.heal_run import HealRequest, HealRun

    digest = hashlib.sha256(text.read_bytes())
    digest.update(f"{open_identity(model.file)} {sorted(plan.pruned)} {per_column}".encode())
    folder = cache_folder()
    out = folder / "heals" / f"{model.file.path.stem[:60]}-{digest.hexdigest()[:16]}.heal.gguf"
    if out.is_file():
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurgeonError(f"{out.parent}: cannot be made: {error.strerror}") from error
    request = HealRequest(model, plan.pruned, (text,), out, per_column=per_column, know_risks=plan.know_risks)
    request.check()
    run_shown(HealRun(request, Engine(threads=threads), folder))
    print(f"surgeon: the heal file is kept in {out}; --heal takes it as it is", file=sys.stderr)
    return out
