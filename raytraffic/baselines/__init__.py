"""What a model has to beat: simple rules behind the same forecast contract."""

from raytraffic.baselines.simple import SIMPLE_RULES, Baseline, rules_for

__all__ = ["SIMPLE_RULES", "Baseline", "rules_for"]
