"""Writing with second moments: same sizes, less error under H, and all the rest holds that holds for any write."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_builder import build_gguf, llama_kv, llama_tensors, toy_llama
from moments_toy import HEAD, Toy, toy_moments
from toy_architectures import EMBD, EXPERTS, qwen3moe

import surgeon_kernels
from surgeon.commands.apply import main as apply_command
from surgeon.commands.quantize import main as quantize_command
from surgeon.errors import Cancelled, SurgeonError
from surgeon.gguf.file import open_gguf
from surgeon.gguf.identity import model_identity
from surgeon.llama_quantize.translation import export
from surgeon.model.model import load_model
from surgeon.moments.files import load_moments
from surgeon.moments.moments import Input, Moments
from surgeon.plan.plan import Plan, with_pruned_experts
from surgeon.plan.recipe import Recipe, RecipeError, load_recipe, read_recipe, save_recipe
from surgeon.resolve import feedback as deciding
from surgeon.resolve.resolve import resolve
from surgeon.write.feedback import Feedback, Key
from surgeon.write.operation import Progress, Summary, WriteOptions, write
from surgeon.write.output_file import OutputFile
from surgeon.write.slab_workers import SlabWorkers
from surgeon.write.slabs import TensorJob
from surgeon.write_guard import REPLACE
from surgeon_kernels import feedback_types

SHARED = {"attn_q": ("attn_q", "attn_k", "attn_v"), "ffn_gate": ("ffn_gate", "ffn_up")}
WIDTHS = {"attn_q": 256, "attn_output": 256, "ffn_gate": 256, "ffn_down": 512}
Q4 = Plan("Q4_0", shrink=0.25)


def inputs(columns: int, seed: int, rows: int = 5000) -> np.ndarray:
    """Correlated rows, as activations are."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns // 8)) @ rng.standard_normal((columns // 8, columns))
    x += 0.3 * rng.standard_normal((rows, columns))
    return (x * np.exp(0.5 * rng.standard_normal(columns))).astype(np.float32)


def moments_of(model: Path, path: Path, layers: Sequence[int] = (0, 1), rows: int = 5000, **changes: Any) -> Moments:
    """Made-up moments for a toy llama's inputs and its head."""
    found = {
        f"blk.{layer}.{name}.weight": inputs(columns, 10 * layer + place, rows)
        for layer in layers
        for place, (name, columns) in enumerate(WIDTHS.items())
    }
    toy = Toy(found | {"output.weight": inputs(256, 99, rows)}, halves=changes.get("halves", 2))
    for layer in layers:
        for first, users in SHARED.items():
            toy.users |= {f"blk.{layer}.{user}.weight": f"blk.{layer}.{first}.weight" for user in users}
    head = replace(HEAD, model=model_identity(model), model_name=model.name, **changes)
    return load_moments(toy_moments(path, toy, head))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_llama(tmp_path_factory.mktemp("toy") / "toy.gguf")


@pytest.fixture(scope="module")
def moments(model: Path) -> Moments:
    return moments_of(model, model.with_name("moments.gguf"))


def run(
    model: Path, plan: Plan, out: Path, moments: Moments | None, options: WriteOptions | None = None
) -> dict[str, tuple[str, bytes]]:
    """Write to the end; type and bytes of every tensor."""
    resolution = resolve(load_model(model), plan, None, moments)
    *_, summary = write(resolution, None, out, options or WriteOptions(threads=2), threading.Event())
    assert isinstance(summary, Summary)
    return tensors_of(out)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    with open_gguf(path) as file:
        return {info.name: (info.type_name, file.data(info).tobytes()) for info in file.tensors}


def drain(reports: Iterable[object], until: Callable[[object], bool], cancelled: threading.Event) -> None:
    """Read all reports, and cancel as soon as one says so."""
    for report in reports:
        if until(report):
            cancelled.set()


def losses(model: Path, written: dict[str, tuple[str, bytes]], moments: Moments) -> dict[str, float]:
    """tr(E H Eᵀ) of every tensor that has moments."""
    found = {}
    with open_gguf(model) as file:
        for info in file.tensors:
            one = moments.of(info.name)
            if one is not None:
                weights = file.data(info).view(np.float16).astype(np.float32).reshape(-1, info.ne[0])
                kind, data = written[info.name]
                blocks = np.frombuffer(data, np.uint8).reshape(len(weights), -1)
                errors = (weights - surgeon_kernels.dequantize(blocks, kind)).astype(np.float64)
                found[info.name] = float(np.einsum("ij,jk,ik->", errors, moments.blocks(one)[0], errors))
    return found


def test_same_types_and_sizes_and_less_error(model: Path, moments: Moments, tmp_path: Path) -> None:
    feedback = run(model, Q4, tmp_path / "feedback.gguf", moments)
    imatrix = moments.as_imatrix
    resolution = resolve(load_model(model), Q4, imatrix)
    list(write(resolution, imatrix, tmp_path / "stock.gguf", WriteOptions(), threading.Event()))
    stock = tensors_of(tmp_path / "stock.gguf")
    assert {name: (kind, len(data)) for name, (kind, data) in feedback.items()} == {
        name: (kind, len(data)) for name, (kind, data) in stock.items()
    }
    with open_gguf(model) as file:
        info = next(info for info in file.tensors if info.name == "token_embd.weight")
        rows = file.data(info).view(np.float16).astype(np.float32).reshape(-1, 256)
    weights = imatrix.weights("blk.0.attn_q.weight")
    assert feedback["token_embd.weight"][1] == surgeon_kernels.quantize(rows, "Q4_0", weights).tobytes()
    assert stock["token_embd.weight"][1] == surgeon_kernels.quantize(rows, "Q4_0").tobytes()
    before, after = losses(model, stock, moments), losses(model, feedback, moments)
    assert len(before) == 15
    assert all(after[name] < 0.9 * before[name] for name in before), (before, after)


def test_threads_and_buffers_change_no_byte(model: Path, moments: Moments, tmp_path: Path) -> None:
    plan = Plan("Q4_0")  # with a shrinkage chosen for each input
    one = run(model, plan, tmp_path / "one.gguf", moments, WriteOptions(threads=1))
    three = run(model, plan, tmp_path / "three.gguf", moments, WriteOptions(threads=3, max_buffer_bytes=1 << 16))
    assert one == three
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()
    assert one != run(model, replace(plan, shrink=0.9), tmp_path / "other.gguf", moments)


def test_the_file_tells_its_encoder(model: Path, moments: Moments, tmp_path: Path) -> None:
    run(model, Q4, tmp_path / "out.gguf", moments)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.kv["surgeon.encoder"].decode() == "feedback, 15 tensors, rounds 1, shrink 0.25"
        assert file.kv["surgeon.moments"].decode() == moments.digest
        assert file.kv["surgeon.moments.dataset"].decode() == "toy.txt"
    hidden = resolve(load_model(model), replace(Q4, hide_imatrix=True), None, moments)
    assert "surgeon.moments.dataset" not in dict(hidden.metadata)
    without = resolve(load_model(model), Q4)
    assert not any(key.startswith("surgeon.") for key, _ in without.metadata)


def test_reasons_say_who_encodes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "feedback_types", feedback_types - {"TQ1_0"})
    few = moments_of(model, tmp_path / "few.gguf", layers=(1,), rows=1500)  # 2.9 tokens a column of ffn_down
    plan = replace(Q4, types=(("blk.1.attn_q.weight", "F32"), ("blk.1.attn_k.weight", "TQ1_0")))
    resolution = resolve(load_model(model), plan, None, few)
    reasons = {op.source: op.reason.partition("; ")[2] for op in resolution.kept}
    assert reasons["blk.1.attn_output.weight"] == "feedback encoder"
    assert reasons["token_embd.weight"] == "stock encoder"  # layer 0, whose input would weigh it, has no moments
    assert reasons["blk.0.attn_q.weight"].endswith("stock encoder: no second moments of its input")
    assert reasons["blk.1.ffn_down.weight"] == "stock encoder: 2.9 tokens a column were seen, 4 are needed"
    assert reasons["blk.1.attn_q.weight"] == ""
    assert reasons["blk.1.attn_k.weight"] == "stock encoder: none with feedback for TQ1_0"
    told = [problem.text for problem in resolution.problems]
    assert any("fewer than 16 tokens a column" in text and "blk.1.attn_output" in text for text in told)
    assert any("1 tensor left to the stock encoder, 2.9 tokens" in text for text in told)
    assert len(resolution.with_feedback) == 5  # attn_v, attn_output, ffn_gate, ffn_up, output
    assert not resolution.errors


def test_embeddings_in_few_bits_are_weighed_by_the_first_layers_input(model: Path, tmp_path: Path) -> None:
    moments = moments_of(model, tmp_path / "both.gguf", layers=(0, 1))
    plan = replace(Q4, types=(("token_embd.weight", "IQ2_XXS"),))
    resolution = resolve(load_model(model), plan, None, moments)
    assert not resolution.errors
    (embeddings,) = (op for op in resolution.kept if op.source == "token_embd.weight")
    assert "weighed by the input of blk.0.attn_q.weight" in embeddings.reason
    assert run(model, plan, tmp_path / "out.gguf", moments)["token_embd.weight"]
    without = resolve(load_model(model), plan, moments.as_imatrix)
    assert any("no entry for it: token_embd.weight" in problem.text for problem in without.errors)


def test_moments_of_other_models(model: Path, moments: Moments, tmp_path: Path) -> None:
    copy = build_gguf(tmp_path / "b.gguf", llama_kv() | {"general.name": "other"}, llama_tensors())
    told = resolve(load_model(copy), Q4, None, moments).problems
    assert [p.severity for p in told if "was collected from another file, toy.gguf" in p.text] == ["warning"]
    wide = build_gguf(tmp_path / "w.gguf", llama_kv(embd=512), llama_tensors(embd=512))
    errors = resolve(load_model(wide), Q4, None, moments).errors
    assert any("have another shape" in problem.text for problem in errors)
    compat = resolve(load_model(model), replace(Q4, compat=True), None, moments).errors
    assert any("leave out --moments" in problem.text for problem in compat)


def test_moments_serve_as_the_imatrix(model: Path, moments: Moments, tmp_path: Path) -> None:
    assert resolve(load_model(model), Plan("IQ2_XXS")).needs_imatrix
    resolution = resolve(load_model(model), Plan("IQ2_XXS"), None, moments)
    assert not resolution.needs_imatrix
    assert dict(resolution.metadata)["quantize.imatrix.file"].decode() == str(moments.path)


def test_a_stopped_run_resumes_to_the_same_bytes(
    model: Path, moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon.write import operation

    whole = run(model, Plan("Q4_0"), tmp_path / "whole.gguf", moments)
    monkeypatch.setattr(operation, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(operation, "TICK", 0.001)
    cancelled = threading.Event()
    resolution, out = resolve(load_model(model), Plan("Q4_0"), None, moments), tmp_path / "out.gguf"
    reports = write(resolution, None, out, WriteOptions(1, resume=True), cancelled)
    with pytest.raises(Cancelled, match="continue with --resume"):
        drain(reports, lambda report: isinstance(report, Progress) and report.index > 6, cancelled)
    resolution = resolve(load_model(model), Plan("Q4_0"), None, moments)
    *_, summary = write(resolution, None, out, WriteOptions(2, resume=True), threading.Event())
    assert isinstance(summary, Summary)
    assert summary.resumed > 0
    assert tensors_of(out) == whole


def test_other_moments_do_not_resume(
    model: Path, moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon.write.output_set import digest

    first = resolve(load_model(model), Q4, None, moments)
    plan, imatrix = replace(Q4, shrink=0.5), moments.as_imatrix
    other = moments_of(model, tmp_path / "other.gguf", rows=4800)
    digests = {
        digest(first, (), imatrix),
        digest(resolve(load_model(model), plan, None, moments), (), imatrix),
        digest(resolve(load_model(model), Q4, None, other), (), imatrix),
        digest(resolve(load_model(model), Q4, imatrix), (), imatrix),
    }
    assert len(digests) == 4
    assert digest(resolve(load_model(model), Q4, None, moments), (), imatrix) in digests


@pytest.mark.parametrize("blocked", ["factor", "quantize_with_feedback"])
def test_cancelling_waits_for_no_factor_and_no_slab(
    model: Path, moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()
    real = getattr(surgeon_kernels, blocked)

    def slow(*arguments: Any, **named: Any) -> Any:
        entered.set()
        assert leave.wait(60)
        try:
            return real(*arguments, **named)
        finally:
            left.set()

    monkeypatch.setattr(surgeon_kernels, blocked, slow)
    cancelled = threading.Event()
    resolution = resolve(load_model(model), Q4, None, moments)
    reports = write(resolution, None, tmp_path / "out.gguf", WriteOptions(2), cancelled)
    with pytest.raises(Cancelled, match="nothing was left behind"):
        drain(reports, lambda _: entered.is_set(), cancelled)
    assert not leave.is_set()  # it was still at work
    leave.set()
    assert left.wait(60)
    assert list(tmp_path.iterdir()) == []


def test_cancelling_stops_the_encoder(model: Path, moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = surgeon_kernels.quantize_with_feedback

    def watched(*arguments: Any, stop: Callable[[], bool], **named: Any) -> Any:
        asked.append(stop())
        return real(*arguments, stop=stop, **named)

    monkeypatch.setattr(surgeon_kernels, "quantize_with_feedback", watched)
    cancelled = threading.Event()
    encoder = Feedback(moments, Q4, cancelled)
    key = next(iter(moments.inputs)), 0
    rows = np.ones((1, moments.inputs[key[0]].columns), np.float32)
    encoder.begin([key], lambda _: (rows, "Q4_0"))
    assert len(encoder.encoded(key, rows, "Q4_0", None)) == 1
    cancelled.set()
    with pytest.raises(Cancelled):
        encoder.encoded(key, rows, "Q4_0", None)
    assert asked == [False, True]


def test_a_slab_waits_for_its_factor_before_its_turn(model: Path, moments: Moments) -> None:
    """Slabs over their thread's share take turns, and one that waits for a factor may wait for another's to go."""
    asked = threading.Event()

    class Watched(Feedback):
        def _factor(self, key: Key) -> Any:
            asked.set()
            return super()._factor(key)

    cancelled = threading.Event()
    resolution = resolve(load_model(model), Q4, None, moments)
    number = next(number for number, op in enumerate(resolution.kept) if op.feedback is not None)
    out = OutputFile(Path("never-written.gguf"), 0)
    job = TensorJob.of(resolution, number, None, out, 0, Watched(moments, Q4, cancelled))
    workers = SlabWorkers([job], 1, 1, cancelled)
    workers.start()
    assert asked.wait(60)
    assert workers._oversize.acquire(blocking=False)
    workers._oversize.release()
    cancelled.set()
    assert workers.wait(60)


def test_a_factor_that_fails_is_told(
    model: Path, moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise SurgeonError("no factor today")

    monkeypatch.setattr(surgeon_kernels, "factor", failing)
    with pytest.raises(SurgeonError, match="no factor today; nothing was left behind"):
        run(model, Q4, tmp_path / "out.gguf", moments)


def test_pruned_layers_take_their_moments_along(tmp_path: Path) -> None:
    model = toy_llama(tmp_path / "three.gguf", layers=3)
    moments = moments_of(model, tmp_path / "moments.gguf", layers=(0, 1, 2))
    whole = run(model, Q4, tmp_path / "whole.gguf", moments)
    arguments = ["--moments", str(moments.path), "--shrink", "0.25", "--prune-layers", "1"]
    out, saved = tmp_path / "pruned.gguf", tmp_path / "pruned.moments.gguf"
    assert quantize_command([*arguments, "--save-moments", str(saved), str(model), str(out), "Q4_0"]) == 0
    pruned = tensors_of(out)
    for name in ("attn_q", "ffn_down"):
        assert pruned[f"blk.1.{name}.weight"] == whole[f"blk.2.{name}.weight"]
    after = load_moments(saved)
    assert sorted({int(name.split(".")[1]) for name in after.users if name.startswith("blk.")}) == [0, 1]
    moved, old = after.inputs["blk.1.ffn_down.weight"], moments.inputs["blk.2.ffn_down.weight"]
    assert np.array_equal(after.blocks(moved)[0], moments.blocks(old)[0])


def test_pruned_experts_take_their_moments_along(tmp_path: Path) -> None:
    model = qwen3moe().write(tmp_path / "moe.gguf")

    class Experts(Toy):
        def sums(self, one: Input, matrix: int, half: int) -> list[np.ndarray]:
            x = inputs(one.columns, int(one.name.split(".")[1]) + 7 * matrix, 100)[half::2]
            return [x.T @ x]

    gates, routers = ([f"blk.{layer}.ffn_{name}.weight" for layer in range(4)] for name in ("gate_exps", "gate_inp"))
    toy = Experts({name: inputs(EMBD, 1, 8) for name in gates + routers})
    for name in gates:
        toy.inputs[name] = Input(name, EMBD, EXPERTS, np.arange(1, 2 * EXPERTS + 1).reshape(EXPERTS, 2))
        toy.users[name.replace("gate", "up")] = name
    moments = load_moments(toy_moments(tmp_path / "m.gguf", toy, replace(HEAD, model=model_identity(model))))
    plan = with_pruned_experts(replace(Q4, pruned=frozenset({1})), {layer: [0, 2] for layer in (0, 2, 3)})
    save_recipe(Recipe(plan, moments=str(moments.path), moments_digest=moments.digest), tmp_path / "r.toml")
    saved = tmp_path / "saved.gguf"
    words = [str(tmp_path / "r.toml"), str(model), str(tmp_path / "out.gguf"), "--save-moments", str(saved)]
    assert apply_command(words) == 0
    after = load_moments(saved)
    assert sorted(after.users) == sorted(name for name in moments.users if not name.startswith("blk.3."))
    for new, old in enumerate((0, 2, 3)):
        kept, whole = after.inputs[gates[new]], moments.inputs[gates[old]]
        assert kept.tokens.tolist() == whole.tokens[[1, 3]].tolist()
        for matrix, expert in enumerate((1, 3)):
            assert np.array_equal(after.blocks(kept, matrix)[0], moments.blocks(whole, expert)[0])
    pruned = load_model(tmp_path / "out.gguf")
    assert "another shape" not in str(resolve(pruned, Q4, None, after).problems)  # they fit the model they came with


def test_experts_are_encoded_by_their_own_moments(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = (rng.standard_normal((3, 64, 256)) / 16).astype(np.float16)
    tensors = llama_tensors(1) | {
        "blk.0.ffn_gate_exps.weight": weights,
        "blk.0.ffn_up_exps.weight": weights[::-1].copy(),
    }
    model = build_gguf(tmp_path / "moe.gguf", llama_kv(1), tensors)

    class Experts(Toy):
        def sums(self, one: Input, matrix: int, half: int) -> list[np.ndarray]:
            x = inputs(256, 50 + matrix, 3000)[half::2]
            return [x.T @ x]

    toy = Experts({"blk.0.ffn_gate_exps.weight": inputs(256, 1, 8)})
    toy.users["blk.0.ffn_up_exps.weight"] = "blk.0.ffn_gate_exps.weight"
    tokens = np.array([[1500, 1500], [1500, 1500], [100, 100]], np.int64)  # the third expert saw too few
    toy.inputs["blk.0.ffn_gate_exps.weight"] = Input("blk.0.ffn_gate_exps.weight", 256, 3, tokens)
    head = replace(HEAD, model=model_identity(model))
    moments = load_moments(toy_moments(tmp_path / "moments.gguf", toy, head))
    resolution = resolve(load_model(model), Q4, None, moments)
    told = {op.source: op.reason for op in resolution.with_feedback}
    assert sorted(told) == ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"]
    assert "feedback encoder for 2 of 3 experts" in told["blk.0.ffn_up_exps.weight"]
    written = run(model, Q4, tmp_path / "out.gguf", moments)
    one = moments.inputs["blk.0.ffn_gate_exps.weight"]
    for name, experts in (("gate", weights), ("up", weights[::-1])):
        kind, data = written[f"blk.0.ffn_{name}_exps.weight"]
        blocks = np.frombuffer(data, np.uint8).reshape(3, 64, -1)
        for expert in range(3):
            rows = experts[expert].astype(np.float32)
            stock = surgeon_kernels.quantize(rows, kind, moments.as_imatrix.weights(one.name).reshape(3, 256)[expert])
            if expert == 2:
                assert np.array_equal(blocks[expert], stock)
                continue
            own = moments.blocks(one, expert)[0]
            mine, theirs = (surgeon_kernels.feedback_error(rows, b, kind, own).sum() for b in (blocks[expert], stock))
            assert mine < 0.9 * theirs


def test_a_tied_head_has_the_heads_moments(tmp_path: Path) -> None:
    tensors = llama_tensors(1)
    del tensors["output.weight"]
    model = build_gguf(tmp_path / "tied.gguf", llama_kv(1), tensors)
    toy = Toy({"token_embd.weight": inputs(256, 4)})
    moments = load_moments(toy_moments(tmp_path / "m.gguf", toy, replace(HEAD, model=model_identity(model))))
    resolution = resolve(load_model(model), Q4, None, moments)
    assert [op.source for op in resolution.with_feedback] == ["token_embd.weight"]


def test_a_recipe_carries_moments(model: Path, moments: Moments, tmp_path: Path) -> None:
    words = ["--moments", str(moments.path), "--feedback-rounds", "0", "--shrink", "0.25"]
    assert quantize_command([*words, str(model), str(tmp_path / "a.gguf"), "Q4_0"]) == 0
    recipe = replace(
        load_recipe(write_recipe(tmp_path / "empty.toml", 'type = "Q4_0"')),
        plan=Plan("Q4_0", shrink=0.25, feedback_rounds=0, moments_file=str(moments.path)),
        moments=str(moments.path), moments_digest=moments.digest,
    )  # fmt: skip
    save_recipe(recipe, tmp_path / "r.toml")
    assert load_recipe(tmp_path / "r.toml") == recipe
    assert apply_command([str(tmp_path / "r.toml"), str(model), str(tmp_path / "b.gguf")]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    save_recipe(replace(recipe, moments_digest="0" * 64), tmp_path / "r.toml", REPLACE)
    with pytest.raises(SurgeonError, match="not the second moments the recipe was made with"):
        apply_command([str(tmp_path / "r.toml"), str(model), str(tmp_path / "c.gguf")])
    assert "no feedback encoder" in " ".join(export(recipe, "in.gguf", "out.gguf").remarks)


def write_recipe(path: Path, text: str) -> Path:
    path.write_text(f"format = 1\n{text}\n")
    return path


@pytest.mark.parametrize("line", ["shrink = 1.5", "shrink = true", 'shrink = "x"', "rounds = -1", "colour = 1"])
def test_bad_keys_of_a_recipe(line: str) -> None:
    with pytest.raises(RecipeError, match=line.split()[0]):
        read_recipe(f"format = 1\n[moments]\n{line}\n", Path())


@pytest.mark.parametrize("words", [["--shrink", "2"], ["--shrink", "x"], ["--feedback-rounds", "-1"]])
def test_bad_options(model: Path, words: list[str]) -> None:
    with pytest.raises(SurgeonError, match=words[0]):
        quantize_command([*words, str(model), "Q4_0"])


def test_json_names_the_encoder(model: Path, moments: Moments, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize_command(["--moments", str(moments.path), "--dry-run", "--json", str(model), "x.gguf", "Q4_0"]) == 0
    told = {entry["name"]: entry["encoder"] for entry in json.loads(capsys.readouterr().out)["tensors"]}
    assert told["blk.0.attn_q.weight"] == "feedback"
    assert told["token_embd.weight"] == told["output_norm.weight"] == "stock"


def test_without_moments_the_bytes_are_the_stock_ones(model: Path, moments: Moments, tmp_path: Path) -> None:
    """Also with an imatrix, and though the options of the other encoder are given."""
    imatrix = moments.as_imatrix
    resolution = resolve(load_model(model), Q4, imatrix)
    list(write(resolution, imatrix, tmp_path / "out.gguf", WriteOptions(), threading.Event()))
    written = tensors_of(tmp_path / "out.gguf")
    with open_gguf(model) as file:
        for info in file.tensors:
            if info.type_name == "F16" and written[info.name][0] == "Q4_0":
                rows = file.data(info).view(np.float16).astype(np.float32).reshape(-1, info.ne[0])
                weights = imatrix.weights(info.name) if info.name in imatrix.entries else None
                assert written[info.name][1] == surgeon_kernels.quantize(rows, "Q4_0", weights).tobytes()
