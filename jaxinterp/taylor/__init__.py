"""TaylorNet (after Yang, Xie and Yang, 2023; the design is ours): networks that are Taylor series."""
