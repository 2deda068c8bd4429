"""The codebooks against the gguf package's, and the neighbour tables against their definition in plain Python."""

from __future__ import annotations

import threading

import gguf.quants
import numpy as np
import pytest

from surgeon_kernels.search import grids

GGUF_CLASS = {"IQ1": "IQ1_S"}


@pytest.mark.parametrize("name", grids.CODEBOOKS)
def test_points_are_those_of_the_gguf_package(name: str) -> None:
    reference = getattr(gguf.quants, GGUF_CLASS.get(name, name))
    reference.init_grid()
    values = np.array(reference.grid_map, np.float32)
    expected = reference.grid.reshape(reference.grid_shape)
    assert np.array_equal(values[grids.grid(name).points], expected)


@pytest.mark.parametrize("name", grids.CODEBOOKS)
def test_lookup_finds_every_point_and_unpacks_to_its_levels(name: str) -> None:
    book, grid = grids.CODEBOOKS[name], grids.grid(name)
    codes = (grid.points.astype(int) * book.base ** np.arange(book.length)).sum(1)
    assert np.array_equal(grid.lookup[codes], np.arange(len(codes)))
    assert (grid.lookup >= 0).sum() == len(codes)
    unpacked = grid.packed.view(np.uint32)[:, None] >> 4 * np.arange(book.length, dtype=np.uint32) & 15
    assert np.array_equal(unpacked, 2 * grid.points + 1)


def plain_neighbours(points: list[list[int]], levels: list[int], rings: int) -> list[int]:
    """Numbers of the points in the nearest `rings` distinct distances, sorted by distance, then number."""
    by_distance: dict[int, list[int]] = {}
    for number, point in enumerate(points):
        distance = sum((a - b) ** 2 for a, b in zip(point, levels, strict=True))
        by_distance.setdefault(distance, []).append(number)
    return [number for distance in sorted(by_distance)[:rings] for number in by_distance[distance]]


@pytest.mark.parametrize("name", grids.CODEBOOKS)
def test_neighbour_lists(name: str) -> None:
    book, grid = grids.CODEBOOKS[name], grids.grid(name)
    points = grid.points.tolist()
    off = np.flatnonzero(grid.lookup < 0)
    # Among the codes drawn are the longest lists and codes with a one-chunk list.
    longest = off[np.argsort(-1 - grid.lookup[off] & 31)[-3:]]
    for code in [*np.random.default_rng(1).choice(off, 25, replace=False), *longest]:
        expected = plain_neighbours(points, book.levels_of(np.array([code]))[0].tolist(), book.rings)
        first, count = divmod(-1 - int(grid.lookup[code]), 32)
        members = grid.members[16 * first : 16 * (first + count)]
        assert members[: len(expected)].tolist() == expected
        assert (members[len(expected) :] == expected[0]).all()
        assert 0 <= members.size - len(expected) < grids.CHUNK
        neighbours = grid.neighbours[16 * first : 16 * (first + count)]
        assert np.array_equal(neighbours[: len(expected)], grid.packed[expected])
        assert not neighbours[len(expected) :].any()


def test_threads_share_one_grid() -> None:
    found: list[grids.Grid] = []
    threads = [threading.Thread(target=lambda: found.append(grids.grid("IQ3_S"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(grid is found[0] for grid in found)
    with pytest.raises(ValueError, match="read-only"):
        found[0].lookup[0] = 1
