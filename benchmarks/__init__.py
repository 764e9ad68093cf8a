"""Measurements, each comparing contenders in one run on one machine."""
