"""Contrastive cDPO: from trajectories to sets, scores, preference methods and their comparison."""
