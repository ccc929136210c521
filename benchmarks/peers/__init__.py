"""The systems that benchmarks/secure_agg.py compares, each behind one function with the same result."""
