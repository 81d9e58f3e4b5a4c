"""A scenario is a partition (who holds which example) times a pattern (which modalities of it are seen)."""

from fedloom.scenarios.modality_pattern import PATTERNS
from fedloom.scenarios.partition import PARTITIONS
from fedloom.scenarios.plan import Plan, Share, build_plan, only, pooled
from fedloom.scenarios.published_draws import published_cohort

__all__ = [
    "PARTITIONS",
    "PATTERNS",
    "Plan",
    "Share",
    "build_plan",
    "only",
    "pooled",
    "published_cohort",
]
