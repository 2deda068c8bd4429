"""How an output is spread over files, against llama-quantize's and llama-gguf-split's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.gguf.file import open_gguf
from surgeon.model.model import load_model
from surgeon.plan.plan import Plan
from surgeon.resolve.resolve import resolve
from surgeon.resolve.shards import groups_by_size, shard_path
from surgeon.write.layouts import lay_out


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("out.gguf", "out-00002-of-00003.gguf"),
        ("out", "out-00002-of-00003.gguf"),
        ("out-00001-of-00007.gguf", "out-00002-of-00003.gguf"),
        ("a.b-00001.gguf", "a.b-00001-00002-of-00003.gguf"),
    ],
)
def test_shard_names(out: str, expected: str) -> None:
    assert shard_path(Path("folder") / out, 1, 3) == Path("folder") / expected


@pytest.mark.parametrize(
    ("sizes", "limit", "groups"),
    [
        ([], 10, [()]),
        ([4, 4, 4], 8, [(0, 1), (2,)]),
        ([4, 4, 4], 12, [(0, 1, 2)]),
        ([20, 1, 1], 8, [(0,), (1, 2)]),  # larger than the limit, first: no empty shard before it
        ([1, 20, 1], 8, [(0,), (1,), (2,)]),
    ],
)
def test_groups_by_size(sizes: list[int], limit: int, groups: list[tuple[int, ...]]) -> None:
    assert groups_by_size(sizes, limit) == groups


def test_one_file_drops_the_split_keys_of_the_input(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "shard-00001-of-00003.gguf"), Plan())
    (layout,) = lay_out(resolution, Path("out.gguf"))
    assert layout.path == Path("out.gguf")
    assert not [key for key, _ in layout.kv if key.startswith("split.")]
    assert layout.numbers == tuple(range(len(resolution.kept)))


def test_keep_split_keeps_every_tensor_in_its_shard(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "shard-00001-of-00003.gguf"), Plan(keep_split=True))
    layouts = lay_out(resolution, Path("out.gguf"))
    assert [layout.path.name for layout in layouts] == [f"out-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for number, layout in enumerate(layouts):
        source = open_gguf(golden_models / "shard-00001-of-00003.gguf").shards[number]
        assert [entry.name for entry in layout.entries] == [info.name for info in source.tensors]
    assert [key for key, _ in layouts[1].kv] == ["split.no", "split.count", "split.tensors.count"]
    assert [value.decode() for _, value in layouts[1].kv] == [1, 3, len(resolution.kept)]


def test_a_shard_without_tensors_is_left_out(golden_models: Path) -> None:
    model = load_model(golden_models / "shard-00001-of-00003.gguf")
    # The third shard ends the model: tensors of layer 2 and, in the middle, some of layer 1.
    last = {tensor.layer for tensor in model.tensors if tensor.info.shard == 2}
    layers = frozenset(layer for layer in last if layer is not None)
    resolution = resolve(model, Plan(keep_split=True, pruned=layers))
    left = {op.tensor.info.shard for op in resolution.kept}
    layouts = lay_out(resolution, Path("out.gguf"))
    assert len(layouts) == len(left | {0})
    assert all(layout.numbers for layout in layouts[1:])
    assert dict(layouts[0].kv)["split.count"].decode() == len(layouts)


def test_split_max_size_has_the_keys_of_gguf_split(demo_model: Path) -> None:
    resolution = resolve(load_model(demo_model), Plan())
    layouts = lay_out(resolution, Path("out.gguf"), 5_000_000)
    assert len(layouts) > 2
    assert [key for key, _ in layouts[0].kv][-3:] == ["split.no", "split.tensors.count", "split.count"]
    for layout in layouts:
        sizes = [entry.nbytes for entry in layout.entries]
        assert sum(sizes) <= 5_000_000 or len(sizes) == 1
    assert [n for layout in layouts for n in layout.numbers] == list(range(len(resolution.kept)))


def test_only_the_first_shard_has_an_alignment_of_its_own(golden_models: Path) -> None:
    resolution = resolve(load_model(golden_models / "align64.gguf"), Plan())
    assert resolution.alignment == 64
    first, second, *_ = lay_out(resolution, Path("out.gguf"), 300_000)
    assert all(offset % 64 == 0 for offset in first.header.offsets)
    assert "general.alignment" not in dict(second.kv)
    assert any(offset % 64 for offset in second.header.offsets) or len(second.header.data) % 64
