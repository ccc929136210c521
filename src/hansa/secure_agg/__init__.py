"""Masking, packing and homomorphic encryption of updates, as I/O-free building blocks."""
