"""Test set-up: 8 fake CPU devices, and rank promotion raises. Runs before any device is touched."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test's time is compilation of a program that runs once, on a few numbers. The jobs that
# the end-to-end tests start as processes of their own compile as they do for users.
jax.config.update("jax_disable_most_optimizations", True)
