"""Iterative preference alignment (paper, Section 3.3.2 and Algorithm 2)."""
