"""Splice as published: a generator optimized on one structure-appearance pair (Tumanyan et al., CVPR 2022)."""
