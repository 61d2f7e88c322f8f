"""Constants of the cost model from measurements others published, and how far its predictions are from them."""
