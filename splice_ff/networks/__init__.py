"""Networks that paint, the per-pair skip UNet and the amortized cross-attention UNet; and frozen ones to learn from."""
