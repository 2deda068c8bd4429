"""The codebooks of the IQ1, IQ2 and IQ3 formats, and the tables that find a point's neighbours.

A codebook ("grid") is an ordered list of points. A point has 8 coordinates of 3 levels (IQ1, IQ2) or 4 coordinates of
8 levels (IQ3); a block stores its number in the list. Every list of ggml is sorted by the number

    u = level[0] + base * level[1] + base**2 * level[2] + ...        base = 3 or 8, u < 6561 or 4096

so a codebook is wholly given by which `u` belong to it: one bit each, here in base64 (bit 0 of byte 0 first).

A quantizer rounds a group of weights to levels. If their `u` is a point, that is it; if not, it tries the points
nearest to `u` (all at the `rings` smallest distinct distances, nearest ring first, by number inside a ring) and takes
the one with the smallest weighted error. `Grid` holds both answers for every `u`.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Neighbours are kept in chunks of this many, one for each SIMD lane.
CHUNK = 16

_IQ2_XXS_POINTS = """
VRUUVRBEQUEABBREABAAAAAEQAAUAEAAAAAABAAAUBBAQREAARQEQFAEQAAQAAAFEAAAUAAAAQAAQAAAQRQEQBQUAAAEAAAEAAAEAAAAAAAABBAAAAAA
AAAAABQEEBAAQAAEEQAEARAAQEAAAQAAAAAAAQQAAAAAABAEQARAAAAEAAAAABAAAAAQAAAAQAAQAAAAAAAAAAAFAQAEAABAAAAAEQAAAAAAAAAAAQAA
AABAAAAAAAAUBAAAAQABBQAAAAAAEBAAAAAAAFAAAAAAAAAAAABAQQAAAUAAAAAAQAAAAAQAQAAAAAAAAAAAAAAAQAAAQAAEAAAAAAAEAAAAAAAAAAAA
AAAAAAAAAQAAAAAAUBBEQRAQARQEABAAQAAAAAREAABAQAAAQEAAAQAAQBAAAQAAABAAEAAABBAAAAAAAAAAAQAAAAAAAAAAABQEABABAAAAAAAEAAAA
ABABBAAAAAAAAAQAAAAEABBEUAAAAAAEAQAAAQAABAAAAAAAAQAAAAAAAABAAAAAAAAAAAAAQAEAAAEAAAAAAAAAAAQAAAAAAQAAAAAEEAQAAAAEAAAA
AAAAQAAAAAAAAAAEAAAAAAAAAAAAQQAAAQAAAQAAQAAAAABAAAAAAAAAQAAAABAAAAAAEQAAAAAAAAAAAAAUAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAEA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQEEAAAQAAEAAAAAEQAAEAAAAAAAAAAQAAAAAAAAAABREABAAQAAAAAAEAAAABAAAABAAAAQAQAAAAQAAAEAA
AAAAAAAAAAAAAQAAAAAAAAAAAAABAAAAAAAAAAAEARAEAAAAAAABAEAAAAAAQAAAAAAAAAABAAAAAAAEAEAAAQAAAAAAAAAAAAABAAAAAAAAAAAAAAAA
AAAAAAAAAAAAEAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAABAAAABAAAAQAAAABAAAAAAAAAAAEAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAEAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""

_IQ2_XS_POINTS = """
VVVVUVVFQRVFAVRVVVBFQRAFAQBUURBAQQQAAQEAUFVFQRUVARQEAFBFQQAFAQQEAABAQQAQBQAAQAAAQFUFERQEARAAQEAFAQAEAABAEAAAAQAEAQAA
AAAQAVRVUVBFQUAFAQBUURBAQQAAAVAAUBEAQAAAAQAAAFBFQQBFARAEAABAQQAAAQAAAAAAQAAEAAABAAAAAAAFBQAEQAAABAAAEQAAAAAABAAAAAAA
AABAAAAAAABVVRBAQQAAAQAEUBAAQBAAEAAAABAAAAEAAAAEAABEQQBAAQAAAAAAQAAAAAQQAAAAEAABAAEAAAAAAAAQQQEEAAABABAABAAAAAAAABAA
AQAAARAAAAAARAEAUFVFQVUFERQEAFBFQQAFAQBEAEBAQQFAAQAAAAAAQBVFARQEABAAAQAFARAEAAAAAEAAAQEAQBAAAAAAABQEABABAQEAAAAEEAAA
QQBAAAAAQAAAAAAAAAAAAFBFQRAFAQAEAABAQQQABQAAAAAAQAAAABAAAAAAAEAFAQQEABBAAAABQQAAAAAAQBAAAAAAEAAAABAAAAQEQABAQAAAAAAB
AAAQQAEAAAAAAAAAAAAAAABAAABAQQAAARAQAAEAUAAAAAAAAAAAAAAAABAABAAAAAEAAUAAAAAAAAAAAAAEABABAAAAABAAAAAAAAAAAAAAEAAAAAAA
AAEAAAAAAAQAAAAAAAAABAAAABAQAAAAQBUFARUEAFAAAFAVAQAEEAQAAAAAAQAEAAAAQAEAQRRUABAAQABAAAAEAAAAAQAAAABAAAAEAAAAAAEAABAE
AAQAAAEUAAAEBAAAAAAAAAAAAAAABAAAABAEBBAFAQAEAAEAAQAAAQAQAAAAAQAAAAAAAAAABABAAABEAAAAQRAAAAAAAAAAEAAAAAAUAAAAAAABAAAA
AAAAAAAAAAQAAAAABAAAAAABAAAAAAAAEAAAABAAAAAARQEEBAAAAAAAAQAAAABAEAAAAEAUAQAQAAAAAQAEAAAAQAAAAABAAAAAAAAAAAAAAAAAAAAA
AABAAAAEAEAARQAAAAAAQBAEAAAAAAAABQAAAAAABQAAAAABAAE=
"""

_IQ2_S_POINTS = """
VVVVUVVFVRUFEVVVUVBFVRQFFRRUURBQVQQAEREQUFVFVVVVFVRFUVBVVRRVVRRUURBAVQQAURQEUBAAQBVVEVVVURABAUAFVQREURBAQAAAARQQBRAA
AABAAFRVUVFFVRUVURRUVVVFVRUFVRQAUBRBQQQFABQEAFBFVRRVVRRUURBAVRUFVRQEUBAAQBQFARQEABAAAEBVUQRUURBAAQAAVRQEUBAAEAAABBAE
ABAABAAAAABUURVRQQUEAREAVFBBQAUFARQEABAQAFEEAQAABQBEVRQFVRQEUBAAQBQFARQEABEAAAAFAQAEAAQAAAAAERQAUBAAAEAAABUEAAAAAAAA
EAAABEAAAAAEQAEAUFVVRVVVFRREUVBFVQVVVRRUURBAQRUEURQEUAAAQFVVVVRVUVBFQQBVVRRUURBQQQAAVRQEUBAAQAAAEBRVUVBFQQAEAQBUURBA
QQAAAUAAUBAAQAAAAAAAAFBFVRVVVRRUUQBAVRUFVRQEUBAAQBQFARQEABQAAABVVRRUURBAQQAAVRQEUBAAQAAAABQEABEAAAAAAABUURBAQUAAAQAA
UBAAQAAAAAAAABAAEAAAAABAAABERRUFURQEQBAAQBUFARQEABAAEAAEAQAEAAEAAAABURQEUBAAQAAAABQEABAQABAABAAEAAAAAAAAABAAUBAAAAAA
EAAAARAAAEAAAAAAAAAAAAAABAAAAABAQBVFERRUERBBAQBFVRRUUQBAQQBAERUAUBAAAAAAAFRVEVBFQQAFAQBUURBAQQAAAQEAUBAAUAAAAAAAABBB
AQAFAQAAAEBAAQAAAQBAAAAAAAAABAAABUAAAAFFVRBUURBAQQAAERQAUBAQAAAAABQEABAAAAAAAEBUURBAQQAAAUAAUBAAQAAAAAAAERAAAAAQABAA
AABAQQAQAQAAAAAAUAAAAAARAAAAAAAAAAAAAAAAQAAAEREQVBAAAAAABAEAABAAAAQAAAAQBEAUAAAARAEAURAAQAAAAAABQBAAEAAAAAAAAAAAAAAA
AAQAAAAAAEAAQAAAAAAAAAEAAAAAQAAABAAAQAEUAQAAABAAAAE=
"""

_IQ1_POINTS = """
VSUUhaACQlEIRTGohiCKohoIKiAUhVAUgiBERSUVBaACgiCIGAAIgqADKqCIu6oKkKoLACIACqqMgqAIQFEIRSGIgFAUQlEIijAImKAIgCoIRSEUhSBI
QlUIRQEswqAgiiYAKiSoqqII4q8ICCgoAKACQiiqKCCogCAKmwi5uqggyq6Joq6qOnzr6rq7gg64IrrK0w6SAiIAIiCoiroKggIIACpK4KI7IiArogCB
QIGqiigIIgEUhVAVgiAJRSFUhaAIAiOoOiCEgiBUQlEIoiAIlVAUAioIuKiCgKBIAiAIgqJoogIoqyoIhSAIgjAIRUAARSEUhaAAQlEARQEpggCKgioI
oTAUBVAUgigIRSEUhSACAiCqKgAgErGKriiouqGqqHAAggoIAigiAoQAggBIgKDqsCqqwiCLuiLq2qeLi26okrAqqnKLikQMKiBIhEAoiioIqiDIzKIi
oq+aoOioAgACACqoiAAggKCLoqIouqCAgjIKur64uv7roqArogiKCijqogChMgIM+qTq3u8rqC6Nvn7r+vd/v+Z9ut5p+yf/vyb6EunhiiIQqr4OhKoI
sqgLgq7/uiTpg4AEYixo8qgKpCsAAioICOKqEgACgioKpiDJgomQgigAogCMgBMAgggIAGyKqqq7Aqa+iqDKAoBrly7QsukQghAuqt4oFdGlBAAKggCK
giAIAaEggqo5uiIyhKAJgBgAiqJiAoEURFEARSGsglAUQlEIqiAoqocKEioIRSEUBaAIQlEIRQEgAqBAoiIAiAAIoghqim64qqqAACAKguLIIiEIRFAU
QlEJiiAVhVAUhgoIqioqgAAKQlEIRSGoAFAUQlEI4iCIggoYgioIqqKqirCLAgoqqiAogoCqCigIKACpiAIioL4LKLgIirpLsq7/uqT4rqogUihotqAw
5oAKAigIImpigCAKAqqqK6rqoqmgoggIECCgiiIAgg4ARSEUhaAKQFEIRSGpBgBKqgIIpQAQDUQUgigIRSEUBQAIgoKs8iAAAACqCigKuiDqogIAgkgJ
KOkUABFLRVEARQGoAlAUQlEIiCQIiCgKQAgARQEUBaACQFEIRQE=
"""

_IQ3_XXS_POINTS = """
FYoFAgQAACgKBSIFAhAAARUCBYoAggAgggUgAAAAAAEACACAEIAAKIIAAAQABAAAAAAAIAAAEAAAUQAACAACAAoFChWAAQAABQIFAAAAAAAKBQIBAAAA
BAUAAQJAAEAAIgAAAAABAAAAABEAQAAAAiAAAAAAAAAAAAAEAAEAAAAFCkUCBAAAACoFAgEAAIgBBYIFgAEgAAACEQAAAAAAEQAAACAACAAACACAAAIA
ABAAAAAAAAAAAApAAAAgAAAAAgUKAAABIAQFAAECUAAAAAoBIAAABAAEAAIACAAAAAAAAAABgAAABEEABAAAIAAAABAAQAAACAAAAAAIAAABABCAAKAA
iAAAAAAAAAAAABAAAAGAAQBBAIAAAAAgAAAAEAAAAAACEAAAACAACAAAAQAAAAAAAAAAIAUAAQAAAAAABAAAAgAAAUEAQAAAIAAAABAABAAAAAQEAAAA
AAgAAAABiAAAAAAEBAAAAgAAAAAAAAAAAAEAAAAAEAAEAAAAAAAQAFAAEAAAAAIAAAACAACAAAAAABAAAAAAQQAAAAAAAAAAEAAAACAAAAAABAAAAAAA
CAAAAAAIAAIAAAAAAKgBAAQABAAAAABAAAEAAAAABAAAIAQAAAEgAAgAAAEAAAACAAIAAAAFABAAAAAAAAAAAAEAAAAAAAAAAAAAAAA=
"""

_IQ3_S_POINTS = """
p1cjCKUKBZIXI4kiEAAiBKNJIhGkCgAJCCIFShAFgCIBiBIECQIAARQARQiiAEAIQAoAAgAEAAIVAEUIABEAABerBVIAUAIESxECCQIFAEEBpBEECSAB
BJIJghECAAQBKBQACkQRAAACCQIFAAIAAAAAkQBQAAAACgUCIAIABAGrVYoFKgWAKQWJJBIEAgAAkgAKgQKIABIlAhQKBAFAAIIACSQCAAAkEAIEgAEI
AAGFAAIAACACACACQAEIAQAABKoEKpQCCAIqEAoAAQABRAEEARQAAQAAAhGKAYogAAgIQgQCAAQRAAIFIAQQQAAIAEAAAAIAAAAKAAUgAAAAABEEkQQC
AQABhAoEIQgiAAAKIQIIAYAEARAKBSIAAAAABQAQgAEAAAKgAAIAAAAEAAAIABAAAAEAACEAAQgCAAAEEQQAkQRAECoEAgQAAAAEAQIIQQAIAACEAYAA
EAIgCBIAAQRAAAAAAARAAAAKAAAAAAAABAAAABQABAAAAAAAACoACgAAAQABAIEAAAAQAAAEABAEIAQBARACAAEAAAAAACAACAAEAAkAABAAAAEAIAAA
AAEAAAAACgAAAAAAAJEABUABEAQABAIQACgAAAASQQIBAAIAAAQAACQACAAAIggBAAABAAAAAAQABAAAAAQAAAIAAAAAAQAAAAAAAAA=
"""


@dataclass(frozen=True, slots=True)
class Codebook:
    """What defines a grid: `bits` (base64, one per code), levels per coordinate, coordinates, rings of neighbours."""

    bits: str
    base: int
    length: int
    rings: int

    def points(self) -> NDArray[np.uint8]:
        """Levels of the points in stored order, uint8[points, length]."""
        packed = np.frombuffer(base64.b64decode(self.bits), np.uint8)
        return self.levels_of(np.flatnonzero(np.unpackbits(packed, count=self.base**self.length, bitorder="little")))

    def levels_of(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Levels of the given codes, uint8[len(codes), length]."""
        return (codes[:, None] // self.base ** np.arange(self.length) % self.base).astype(np.uint8)


CODEBOOKS: dict[str, Codebook] = {
    "IQ2_XXS": Codebook(_IQ2_XXS_POINTS, 3, 8, rings=2),
    "IQ2_XS": Codebook(_IQ2_XS_POINTS, 3, 8, rings=2),
    "IQ2_S": Codebook(_IQ2_S_POINTS, 3, 8, rings=1),
    "IQ1": Codebook(_IQ1_POINTS, 3, 8, rings=3),
    "IQ3_XXS": Codebook(_IQ3_XXS_POINTS, 8, 4, rings=2),
    "IQ3_S": Codebook(_IQ3_S_POINTS, 8, 4, rings=3),
}


class Grid(NamedTuple):
    """A codebook ready for the searches; every array is read-only.

    points: uint8[n, length], the levels of each point.
    packed: int32[n], the same in one number: 2 * level + 1 in the four bits from 4i up.
    lookup: int32[base**length]; the number of the point with code `u`, or, where `u` is no point, -1 - (32 * first +
        count): its neighbours are the chunks `first ... first + count - 1` of the next two.
    neighbours: int32[chunks * CHUNK], neighbours as `packed` has them; 0 where a list does not fill its last chunk.
    members: int32[chunks * CHUNK], their point numbers; there that of the first.
    """

    points: NDArray[np.uint8]
    packed: NDArray[np.int32]
    lookup: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    members: NDArray[np.int32]


def _nearest_rings(
    levels: NDArray[np.uint8], points: NDArray[np.uint8], rings: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neighbours of each row of `levels`: (row, point number) pairs sorted by row, then distance, then number."""
    a, b = levels.astype(np.float32), points.astype(np.float32)
    # Squares of at most 4 * 49: exact in float32.
    distance = ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)).astype(np.int16)
    limit = np.full(len(a), -1, np.int16)
    for _ in range(rings):
        limit = np.where(distance > limit[:, None], distance, np.iinfo(np.int16).max).min(1)
    row, number = np.nonzero(distance <= limit[:, None])
    order = np.lexsort((number, distance[row, number], row))
    return row[order], number[order]


def _neighbours(codebook: Codebook, codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`_nearest_rings` of all `codes`, in slices that keep the distance table within a few MiB."""
    points = codebook.points()
    rows, numbers = [], []
    for start in range(0, len(codes), 256):
        row, number = _nearest_rings(codebook.levels_of(codes[start : start + 256]), points, codebook.rings)
        rows.append(row + start)
        numbers.append(number)
    return np.concatenate(rows), np.concatenate(numbers)


def _build(codebook: Codebook) -> Grid:
    points = codebook.points()
    on = (points * codebook.base ** np.arange(codebook.length)).sum(1)
    off = np.setdiff1d(np.arange(codebook.base**codebook.length), on)
    row, number = _neighbours(codebook, off)
    counts = np.bincount(row)
    chunks = -(-counts // CHUNK)
    first_entry = np.cumsum(counts) - counts
    first_chunk = np.cumsum(chunks) - chunks
    members = np.repeat(number[first_entry], chunks * CHUNK).astype(np.int32)
    places = first_chunk[row] * CHUNK + np.arange(len(row)) - first_entry[row]
    members[places] = number
    lookup = np.empty(codebook.base**codebook.length, np.int32)
    lookup[on] = np.arange(len(on))
    lookup[off] = -1 - (32 * first_chunk + chunks)
    packed = ((2 * points.astype(np.uint32) + 1) << (4 * np.arange(codebook.length, dtype=np.uint32))).sum(1)
    packed = packed.astype(np.uint32).view(np.int32)
    neighbours = np.zeros(len(members), np.int32)
    neighbours[places] = packed[number]
    for array in (points, packed, lookup, neighbours, members):
        array.setflags(write=False)
    return Grid(points, packed, lookup, neighbours, members)


_built: dict[str, Grid] = {}
_building = threading.Lock()


def grid(name: str) -> Grid:
    """The grid called `name` (a key of CODEBOOKS), built on first use (≈ 0.1 s) and shared by all threads."""
    with _building:
        if name not in _built:
            _built[name] = _build(CODEBOOKS[name])
        return _built[name]
