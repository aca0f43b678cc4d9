"""Records of a training: ledger, energy, FLOPs, and the tables derived from them."""
