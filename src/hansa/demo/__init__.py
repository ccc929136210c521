"""The demonstration that `hansa demo` runs: data, comparison arms, plots and the report."""
