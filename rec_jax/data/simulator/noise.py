"""Random numbers that are a function of their keys: common random numbers, in any order.

Dimension key: none.
"""

import enum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """What a random number is for; streams are independent of each other."""

    TOPICS = 1
    ITEMS = 2
    TEXT = 3
    USERS = 4
    REQUESTS = 5
    DRIFT = 6
    LOGGING = 7
    RANDOM_POLICY = 8
    WATCH_RADIUS = 9
    WATCH_ANGLE = 10
    LEAVE = 11
    LIKE = 12
    FOLLOW = 13
    LOG_SEED = 14


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """A generator for one part of the world, independent of those of the other parts."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(stream)])))


def keyed_bits(stream: Stream, *keys: np.ndarray | int) -> np.ndarray:
    """64 random bits per combination of keys.

    h_0 = stream, h_k = mix((h_{k-1} xor key_k) + c), with the finaliser `mix` and the constant c
    of SplitMix64 (Steele, Lea and Flood, 2014): a counter-based generator, so that a number
    depends on its keys alone and not on what else is drawn.

    Args:
      stream: what the numbers are for.
      keys: integers or integer arrays, at least one array, that broadcast against each other.

    Returns:
      UInt64 array of the broadcast shape.
    """
    shape = np.broadcast_shapes(*(np.shape(key) for key in keys))
    # One dimension at least, since NumPy warns of single numbers that wrap around, as is meant.
    state = np.array([int(stream)], np.uint64)
    for key in keys:
        state = _mix((state ^ np.asarray(key, np.int64).astype(np.uint64)) + _GOLDEN)
    return state.reshape(shape)


def keyed_uniforms(stream: Stream, *keys: np.ndarray | int) -> np.ndarray:
    """Float64 uniform on (0, 1), one per combination of keys.

    >>> numbers = keyed_uniforms(Stream.LIKE, 7, np.arange(3))
    >>> bool(numbers[2] == keyed_uniforms(Stream.LIKE, 7, np.array([2]))[0])
    True
    """
    return ((keyed_bits(stream, *keys) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of 64 bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
