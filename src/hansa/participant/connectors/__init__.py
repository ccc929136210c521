"""Ways to an institution's data: files and databases, read in pieces and never written to."""
