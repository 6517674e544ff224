"""Search spaces: strict YAML in, scenarios and reasons for infeasibility out."""

from dynosim.space.domains import Choices, Domain, Parameter, Range
from dynosim.space.schema import json_schema
from dynosim.space.space import Point, SearchSpace, bundled_spaces, find_space

__all__ = [
    "Choices",
    "Domain",
    "Parameter",
    "Point",
    "Range",
    "SearchSpace",
    "bundled_spaces",
    "find_space",
    "json_schema",
]
