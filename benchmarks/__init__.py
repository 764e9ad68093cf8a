"""Measurements: each compares something with the floor or a peer, in one run on one machine."""
