"""Kernels of networks: of given gates (`path`), of a network as it is (`tangent`), and what is done with them."""
