"""Several hosts on one machine: network namespaces joined by links of a set rate, and torchrun on each of them."""
