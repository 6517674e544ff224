"""Settings of all tests: what they do depends neither on the clock nor on chance."""

from hypothesis import HealthCheck, settings

settings.register_profile("dynosim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dynosim")
