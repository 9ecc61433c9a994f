"""Recovery of what compression lost, without labels: a compressed model learns the outputs of the one that came."""
