"""Per-sample clipping, Poisson sampling, noise and privacy accounting."""
