"""Training: pairs, losses, heads and the loop. The only rooms besides `encoders/export` that import torch."""
