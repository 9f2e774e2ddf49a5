"""Numbers about a network: operation counts and energy. Numpy only."""
