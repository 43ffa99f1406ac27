"""Sampling engine: prefill, cached decoding, slots that are refilled."""
