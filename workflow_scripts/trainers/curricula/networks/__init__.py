"""Networks and parts of networks."""
