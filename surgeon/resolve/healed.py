"""Healed tensors in a plan: taken from the heal file where it fits model and plan, named in reasons and metadata."""

from __future__ import annotations

from surgeon import figures
from surgeon.errors import SurgeonError
from surgeon.gguf.values import Value, ValueType
from surgeon.healing.heal_file import Heal, Refit, load_heal
from surgeon.model.model import Model
from surgeon.plan.plan import Plan
from surgeon.resolve.preflight import Findings
from surgeon.resolve.tensor_facts import TensorFacts

HEALED = "surgeon.healed"


def fitting_heal(model: Model, plan: Plan, findings: Findings) -> Heal | None:
    """The plan's heal file, opened; None where there is none or, with an error among the findings, where it misfits."""
    if plan.healing is None:
        return None
    if plan.compat:
        findings.error("llama-quantize heals nothing; leave out --compat or --heal")
        return None
    try:
        heal = load_heal(plan.healing.file)
    except SurgeonError as error:
        findings.error(str(error))
        return None
    misfit = heal.misfit(model, plan.pruned)
    if misfit is None and heal.id != plan.healing.id:
        misfit = f"{heal.path}: is not the heal file the plan was made with (its id differs)"
    if misfit is not None:
        findings.error(misfit)
        return None
    for text in heal.origin.worse:
        findings.warning(
            f"{heal.path}: on {text.text} healing is worse than pruning alone "
            f"(KL divergence {text.plain:.3f} -> {text.healed:.3f})"
        )
    findings.note(f"healed: {figures.counted(len(heal.tensors), 'tensor')}, fitted on {heal.origin.summary()}")
    return heal


def with_healed(order: tuple[TensorFacts, ...], heal: Heal) -> tuple[TensorFacts, ...]:
    """The facts with the healed tensors in their places."""
    reasons = {refit.name: _words(refit) for refit in heal.origin.refits}
    return tuple(
        facts._replace(healed=(heal.tensors[facts.name], reasons.get(facts.name, "healed")))
        if facts.name in heal.tensors
        else facts
        for facts in order
    )


def _words(refit: Refit) -> str:
    """`healed: −34 % error`: how much of what the branch lacked is there now, on tokens that were not fitted."""
    gone = 1 - refit.after / refit.before if refit.before else 0.0
    return f"healed: −{100 * gone:.0f} % error" + (f" ({refit.note})" if refit.note else "")


def add_healing(kv: dict[str, Value], heal: Heal) -> None:
    """Which tensors (by the source's names) are healed, and what they were fitted on."""
    origin, strings = heal.origin, ValueType.STRING
    kv[HEALED] = Value.array(strings, sorted(heal.tensors))
    kv[f"{HEALED}.id"] = Value.of(strings, heal.id)
    kv[f"{HEALED}.texts"] = Value.array(strings, origin.texts)
    kv[f"{HEALED}.text_sha256"] = Value.array(strings, origin.text_sha256)
    kv[f"{HEALED}.chunks"] = Value.array(ValueType.UINT32, origin.chunks)
    kv[f"{HEALED}.tokens"] = Value.of(ValueType.UINT32, origin.tokens)
