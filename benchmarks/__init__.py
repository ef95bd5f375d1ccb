"""Benchmarks beside PyTorch; each is a program that writes benchmarks/results/<benchmark>-<machine>.json."""
