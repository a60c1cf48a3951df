"""What a model has to beat: simple rules, and fitted baselines, behind the same forecast contract."""

from raytraffic.baselines.gradient_boosting import GradientBoosting
from raytraffic.baselines.ridge import RidgeBlend
from raytraffic.baselines.simple import SIMPLE_RULES, Baseline, rules_for

__all__ = ["SIMPLE_RULES", "Baseline", "GradientBoosting", "RidgeBlend", "rules_for"]
