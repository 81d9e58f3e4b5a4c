"""A scenario is a partition (who holds which example) times a pattern (which modalities of it are seen)."""

from fedloom.scenarios.partition import PARTITIONS
from fedloom.scenarios.pattern import PATTERNS
from fedloom.scenarios.plan import Plan, ScenarioSettings, Share, build_plan, only, pooled

__all__ = ["PARTITIONS", "PATTERNS", "Plan", "ScenarioSettings", "Share", "build_plan", "only", "pooled"]
