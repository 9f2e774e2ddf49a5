"""Training: data, models, losses, the loop, and lowering. The only part of the toolkit that needs torch."""
