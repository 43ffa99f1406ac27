"""Sparse mixture of experts: router, dispatch, experts, layer."""
