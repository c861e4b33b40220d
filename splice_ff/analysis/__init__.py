"""What the features of a ViT mean: PCA, attention, correspondence and inversion."""
