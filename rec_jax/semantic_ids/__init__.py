"""Semantic IDs: embeddings, balanced residual K-means, codebooks and prefix tables."""
