"""Measure a cluster's links and GPUs by micro-benchmarks and describe it in a topology file."""
