"""How good images are: metrics, the methods compared, statistics over pairs, and the report."""
