"""Serving engines, one a file: what a plan is to each of them."""
