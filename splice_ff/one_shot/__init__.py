"""The amortized model in use: one forward pass a pair, refining, tiles, batches and files."""
