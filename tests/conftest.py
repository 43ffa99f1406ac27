"""Test set-up: 8 fake CPU devices, and rank promotion raises. Runs before any device is touched."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
