"""Every random number of a run comes from its seed and the name of its purpose. There is no global random state."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 31-bit seed for the purpose `names`, independent between purposes and the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") & 0x7FFF_FFFF


def episode_seeds(seed: int, stream: str, numbers: Iterable[int]) -> list[int]:
    """Seeds of the episodes `numbers` of a stream (`train`, `evaluate`, ...), independent of other episodes."""
    prefix = hashlib.blake2b(f"{seed}/{stream}/".encode(), digest_size=4)
    return [_continue(prefix, number) for number in numbers]


def _continue(prefix: "hashlib.blake2b", number: int) -> int:
    """`derive` with all but the last name already hashed, because the time matters for episodes of a few steps."""
    digest = prefix.copy()
    digest.update(b"%d" % number)
    return int.from_bytes(digest.digest(), "little") & 0x7FFF_FFFF


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea & Flood 2014) of each uint64: a hash that is the same on every machine."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys_of(seeds: Sequence[int]) -> np.ndarray:
    """(N,) uint64, well mixed: keys for `uniforms`."""
    return mix(np.asarray(seeds, dtype=np.int64).astype(np.uint64))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """(N,) uint64 keys -> (N, count) float64 in (0, 1): row i is a function of key i alone."""
    with np.errstate(over="ignore"):
        counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = mix(mix(keys)[:, None] ^ counters)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
