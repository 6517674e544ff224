"""The search: studies, trials, samplers. The only place that knows Optuna and BoTorch."""
