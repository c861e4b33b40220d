"""How good pictures are: metrics, the methods compared, statistics over pairs, and the report."""
