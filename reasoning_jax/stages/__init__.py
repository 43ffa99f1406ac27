"""Stages of the reasoning jobs."""
