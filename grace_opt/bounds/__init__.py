"""Lower bounds: what no plan of a problem can beat."""
