"""What a run is: one frozen dataclass a verb, and strict conversion of any frozen dataclass to JSON and back."""

from raytraffic.config.conversion import from_json, to_json, with_options
from raytraffic.config.data import PrepareConfig, QuickstartConfig
from raytraffic.config.decisions import DeploymentSettings, OptimizeConfig, SleepSettings
from raytraffic.config.environment import ContrastConfig, EmbedConfig, ScenesConfig
from raytraffic.config.evaluation import CalibrateConfig, EvaluateConfig, UomoTables
from raytraffic.config.forecasting import ForecastConfig, ServeConfig
from raytraffic.config.study import StudyConfig
from raytraffic.config.training import FinetuneConfig, PretrainConfig, SplitName, TrainConfig

__all__ = [
    "CalibrateConfig",
    "ContrastConfig",
    "DeploymentSettings",
    "EmbedConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "ForecastConfig",
    "OptimizeConfig",
    "PrepareConfig",
    "PretrainConfig",
    "QuickstartConfig",
    "ScenesConfig",
    "ServeConfig",
    "SleepSettings",
    "SplitName",
    "StudyConfig",
    "TrainConfig",
    "UomoTables",
    "from_json",
    "to_json",
    "with_options",
]
