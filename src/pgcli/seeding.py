"""Every random number of a run comes from its seed and the name of what it is for. There is no global random state."""

import hashlib
from collections.abc import Iterable

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 31-bit seed for the purpose that `names` spell, independent between purposes and the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") & 0x7FFF_FFFF


def episode_seeds(seed: int, stream: str, numbers: Iterable[int]) -> list[int]:
    """Seeds of the episodes `numbers` of a stream (`train`, `evaluate`, ...), known without playing the others."""
    prefix = hashlib.blake2b(f"{seed}/{stream}/".encode(), digest_size=4)
    return [_continue(prefix, number) for number in numbers]


def _continue(prefix: "hashlib.blake2b", number: int) -> int:
    """`derive` with all but the last name hashed already: an episode of a few steps would feel the difference."""
    digest = prefix.copy()
    digest.update(b"%d" % number)
    return int.from_bytes(digest.digest(), "little") & 0x7FFF_FFFF


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
