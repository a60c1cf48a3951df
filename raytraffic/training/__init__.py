"""One training run, wherever it happens: its settings and model, its loop, and a run in this process alone. No Ray."""

from raytraffic.training.alone import train_alone
from raytraffic.training.run import Run, Worker
from raytraffic.training.settings import check, finished, initial_model, keep_settings, selected_windows

__all__ = ["Run", "Worker", "check", "finished", "initial_model", "keep_settings", "selected_windows", "train_alone"]
