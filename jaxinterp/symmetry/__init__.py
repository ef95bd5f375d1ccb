"""Groups, invariants, and how the layers of any network move with its input."""
