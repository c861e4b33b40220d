"""The frozen vision transformer: its features, its weights, and what it is given to see."""
