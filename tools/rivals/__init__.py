"""Tools that a user would otherwise take, on the same model, text and machine: ``make rivals``."""
