"""OneRec (Deng et al., 2025, arXiv:2502.18965): generative recommendation of whole sessions."""
