"""Abstract interpretation of a forward pass: the shapes of all networks of a space at a time."""
