"""Training the amortized generator on many pairs."""
