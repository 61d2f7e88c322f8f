"""Readers of what serving engines record: token-level ones lead to a trace, counts to a load history."""
