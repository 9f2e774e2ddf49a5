"""``python -m snnkit`` is the command line: ``torchrun --nproc-per-node 2 -m snnkit distill ...`` needs a module."""

from snnkit.cli import main

main()
