"""hansa as a Flower app: two names, and no code but that of the hansa that each side has installed."""
