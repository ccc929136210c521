"""Ground floor: one numerical operation a file, each with its plain reference beside it."""
