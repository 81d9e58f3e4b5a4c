"""Scenarios: a partition decides which client holds which example, a pattern which modalities the client sees."""

from fedloom.scenarios.modality_pattern import PATTERNS
from fedloom.scenarios.partition import PARTITIONS
from fedloom.scenarios.plan import Plan, Share, build_plan, pooled
from fedloom.scenarios.published_draws import published_cohort

__all__ = [
    "PARTITIONS",
    "PATTERNS",
    "Plan",
    "Share",
    "build_plan",
    "pooled",
    "published_cohort",
]
