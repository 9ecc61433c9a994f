"""What things cost on this machine: measured once, and kept."""
