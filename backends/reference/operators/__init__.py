"""What each operator computes, by subject."""
