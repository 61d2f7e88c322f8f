"""Predict what a plan takes on a machine that need not be there: a topology-aware cost model."""
