"""How far predictions are from measurements of real GPUs: reading, replaying, scoring and documenting them."""
