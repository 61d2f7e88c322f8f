"""Planners, one published method a file under its published name."""
