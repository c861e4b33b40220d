"""`splice-ff benchmark`, from a source tree: `python -m eval.benchmark all`, `python -m eval.benchmark step`, …"""

import typer

from splice_ff.commands.benchmark import benchmark

if __name__ == "__main__":
    typer.run(benchmark)
