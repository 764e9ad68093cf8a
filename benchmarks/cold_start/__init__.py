"""Measures cold starts: from process start until the first result reaches the control plane.

    make bench                                   # or python -m benchmarks.cold_start --help

Contenders run in turn on one machine with the same volume, seen through a simulated network
(`benchmarks/simulated_volume`), each with an empty page cache and a fresh mount. `bars.py` has the
targets for the ratios of medians; docs/benchmarks.md is written at the end.
"""
