"""Test set-up: 8 fake CPU devices, and rank promotion raises. Runs before any device is touched."""

import gc
import pathlib

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test's time is compilation of a program that runs once, on a few numbers. The jobs that
# the end-to-end tests start as processes of their own compile as they do for users.
jax.config.update("jax_disable_most_optimizations", True)
# Nor does anybody read where in the deep stack of a test an operation came from.
jax.config.update("jax_traceback_in_locations_limit", 0)
# The caches of programs hold millions of objects that live long: looked through less often.
gc.set_threshold(20_000, 20, 50)

_MOST_MAPS = 20_000
"""Of the 65,530 memory maps that Linux grants a process. Every compiled program takes some, and
past the limit the compiler crashes; a whole run of the tests in two processes gets there."""


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs():
    """Forgets compiled programs after a file of tests when there are many."""
    yield
    assert jax.config.read("jax_disable_most_optimizations"), (
        "this file left compiling slow for all others"
    )
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
