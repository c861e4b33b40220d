"""`python -m splice_ff` is `splice-ff`."""

from splice_ff.cli import main

main()
