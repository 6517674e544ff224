"""How far a simulated number may be off: sampling noise of one run, error of the model, and what follows for rankings.

Sampling noise is what other requests from the same traffic would change; the model's error is what a real server would.
The two are kept apart, because more requests shrink only the first. Left out: wrong guesses of the traffic itself.
"""

from dynosim.uncertainty.sampling import BATCHES, half_width

__all__ = ["BATCHES", "half_width"]
