"""Interaction logs: schema, readers, sessions and model inputs."""
