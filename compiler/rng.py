"""Random numbers by name: every generator is derived from one seed and the name of its purpose."""

import hashlib
import operator

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one purpose: equal for equal seed and name, independent of every other.

    Any integer is a seed, 0 and negative ones included. The name is part of the entropy, so that a purpose added
    later doesn't move the numbers of an older one.
    """
    entropy = int.from_bytes(_hash(seed, name), "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def integer(seed: int, name: str) -> int:
    """Return a seed for somebody else's generator, from 1 to 2**31 - 1: DSPy's MIPROv2 takes 0 for "not set"."""
    return int.from_bytes(_hash(seed, f"{name}/integer")[:8], "big") % (2**31 - 1) + 1


def order_key(seed: int, name: str, item: str) -> bytes:
    """Return the key that sorts items into a random order in which an item's place depends on no other item.

    One row more or less leaves the order of the rest as it was, which a shuffled list doesn't do; and the bytes
    depend on no version of numpy.
    """
    return _hash(seed, f"{name}/{item}")


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{operator.index(seed)}/{name}".encode()).digest()
