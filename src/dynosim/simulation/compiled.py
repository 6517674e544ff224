"""How the engine is compiled: cached on disk, and only the functions called from Python get Python wrappers.

A wrapper unpacks some twenty arrays; leaving it out of inner functions halves the one-time compilation.
"""

from numba import njit

entry = njit(cache=True)
inner = njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
