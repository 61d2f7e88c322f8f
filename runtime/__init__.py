"""Run a plan: really dispatch tokens, compute experts and combine, on one device or many."""
