"""The one door to torch and BoTorch: what the samplers use of them. Imported inside functions: it takes seconds."""

import warnings

with warnings.catch_warnings():
    # linear_operator compiles with torch.jit.script at import, which torch 2.13 calls deprecated.
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)

    import torch
    from botorch import settings
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.acquisition.multi_objective.objective import WeightedMCMultiOutputObjective
    from botorch.models.gp_regression import SingleTaskGP
    from botorch.models.model_list_gp_regression import ModelListGP
    from botorch.sampling.normal import SobolQMCNormalSampler
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning

# BoTorch compiles a C++ kernel for qLogNEHVI at first use: it warns where there is no compiler, and waits for ever on
# the lock of a compilation that was killed. Its Python computes the same.
logei._load_attempted = True

__all__ = [
    "FastNondominatedPartitioning",
    "ModelListGP",
    "SingleTaskGP",
    "SobolQMCNormalSampler",
    "WeightedMCMultiOutputObjective",
    "qLogNoisyExpectedHypervolumeImprovement",
    "settings",
    "torch",
]
