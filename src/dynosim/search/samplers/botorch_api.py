"""The one door to torch and BoTorch: what the samplers use of them. Imported inside functions: it takes seconds."""

import warnings

with warnings.catch_warnings():
    # linear_operator compiles with torch.jit.script at import, which torch 2.13 calls deprecated.
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)

    import torch
    from botorch import settings
    from botorch.acquisition.acquisition import AcquisitionFunction
    from botorch.acquisition.analytic import _log_ei_helper as log_h
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.acquisition.multi_objective.objective import WeightedMCMultiOutputObjective
    from botorch.models.gp_regression import SingleTaskGP
    from botorch.models.model_list_gp_regression import ModelListGP
    from botorch.sampling.normal import SobolQMCNormalSampler
    from botorch.utils.probability.utils import log_ndtr
    from botorch.utils.transforms import t_batch_mode_transform
    from gpytorch.kernels import Kernel as GpytorchKernel
    from gpytorch.kernels import RBFKernel, ScaleKernel
    from gpytorch.means import ConstantMean
    from gpytorch.settings import min_fixed_noise, min_variance
    from gpytorch.utils.warnings import NumericalWarning
    from torch import Tensor

# BoTorch compiles a C++ kernel for qLogNEHVI at first use: it warns where there is no compiler, and waits for ever on
# the lock of a compilation that was killed. Its Python computes the same.
logei._load_attempted = True

__all__ = [
    "AcquisitionFunction",
    "ConstantMean",
    "GpytorchKernel",
    "ModelListGP",
    "NumericalWarning",
    "RBFKernel",
    "ScaleKernel",
    "SingleTaskGP",
    "SobolQMCNormalSampler",
    "Tensor",
    "WeightedMCMultiOutputObjective",
    "log_h",
    "log_ndtr",
    "min_fixed_noise",
    "min_variance",
    "qLogNoisyExpectedHypervolumeImprovement",
    "settings",
    "t_batch_mode_transform",
    "torch",
]
