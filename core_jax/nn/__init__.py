"""Flax Linen layers shared by the models of both tracks."""
