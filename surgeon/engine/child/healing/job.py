"""A pruned model healed layer by layer: the unpruned model's streams are the goal, the pruned one's inputs the means.

Two streams go side by side through the layers from the first one that is affected: H, the unpruned model's, and R, the
healed one's. At a layer that stays, attn_output is refitted so that R between attention and feed-forward comes near H
there, then ffn_down, or each expert's, so that R behind the layer comes near H behind the layers that are left out
after it. What follows sees the healed matrices. Each layer is run alone, over all chunks, before the next.
"""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.engine.child.healing.layer_step import LayerStep, Pair
from surgeon.engine.child.healing.runner import Runner
from surgeon.engine.child.healing.selection import select
from surgeon.engine.child.healing.store import Store
from surgeon.engine.child.healing.streams import ATTENTION, EXPERTS, FEED_FORWARD, OUTPUT
from surgeon.engine.child.llama.model import LlamaModel
from surgeon.engine.protocol import Finished, HealJob, HealLayer, Message, Started, Step

FEWEST_FOR_STACK = 12.0  # tokens a column; with fewer only the layers before the gaps are healed


def measure(model: LlamaModel, job: HealJob, threads: int) -> Iterator[Message]:
    """Started, a Step per chunk of every run of a layer, a HealedMatrix per matrix, Finished with what was used."""
    selection = select(model, job)
    before_only = job.before_only or selection.tokens < FEWEST_FOR_STACK * job.columns
    layers = _needed([HealLayer(**layer) for layer in job.layers], before_only)
    entry = max(1, layers[0].number)  # layers that a chunk goes through before the first that is affected
    total = selection.n_chunks * (entry + sum(1 if layer.pruned else 3 for layer in layers))
    runner = Runner(model, selection, Store(job.folder, selection.tokens), job.n_ctx, threads, total)
    yield Started(selection.tokens, total, job.n_ctx)
    yield from _walk(runner, layers, job, before_only)
    yield Step(total, total)  # a layer that is the same in both models took fewer runs
    yield Finished({"tokens": selection.tokens, "chunks": selection.counts, "before_only": before_only})


def _needed(layers: list[HealLayer], before_only: bool) -> list[HealLayer]:
    """Behind the last gap there is nothing to do when only the layers before gaps are healed."""
    if not before_only:
        return layers
    return layers[: 1 + max(index for index, layer in enumerate(layers) if layer.pruned)]


def _walk(runner: Runner, layers: list[HealLayer], job: HealJob, before_only: bool) -> Iterator[Message]:
    entry = runner.store.new(job.width)
    yield from runner.enter(layers[0].number, entry)
    pair = Pair(entry, entry)
    index = 0
    while index < len(layers):
        if layers[index].pruned:  # the model's first layers: no matrix before them can make up for them
            goal = runner.store.new(job.width)
            layer = runner.opened(layers[index])
            yield from runner.run(layer, pair.goal, {OUTPUT: goal}, OUTPUT)
            layer.close()
            pair, index = Pair(goal, pair.healed), index + 1
            continue
        gap = _gap(layers, index + 1)
        step = LayerStep(runner, layers[index], gap, pair, _healed_kinds(before_only, bool(gap)))
        yield from step.messages()
        pair, index = step.result, index + 1 + len(gap)


def _healed_kinds(before_only: bool, before_gap: bool) -> set[str]:
    if not before_only:
        return {ATTENTION, FEED_FORWARD, EXPERTS}
    return {FEED_FORWARD, EXPERTS} if before_gap else set()


def _gap(layers: list[HealLayer], start: int) -> list[HealLayer]:
    """The pruned layers from `start` on."""
    end = start
    while end < len(layers) and layers[end].pruned:
        end += 1
    return layers[start:end]
