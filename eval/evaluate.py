"""`splice-ff evaluate` in several processes, which share the pairs.

On GPUs `accelerate launch --multi_gpu -m eval.evaluate PAIRS -o DIR ...`, on CPUs
`torchrun --nproc_per_node 2 -m eval.evaluate PAIRS -o DIR ...`: accelerate starts one process only there.
"""

import typer

from splice_ff.commands.evaluate import evaluate

if __name__ == "__main__":
    typer.run(evaluate)
