"""What a training run tells Ray's metrics (Prometheus) while it goes: progress, losses, rates, and how much of the GPU it uses."""

from __future__ import annotations

import torch
from ray.util.metrics import Gauge

from raytraffic.cost import peak_flops

__all__ = ["TrainMetrics", "model_flops_utilisation"]

_TEXTS = {
    "step": "Optimisation steps done.",
    "loss": "Mean training loss since the last report.",
    "validation_loss": "Loss of the averaged weights on validation windows.",
    "gradient_norm": "Norm of the last gradient, before clipping.",
    "learning_rate": "Learning rate.",
    "windows_per_second": "Windows trained on a second, over all workers.",
    "tokens_per_second": "Base tokens (of the store) trained on a second, over all workers.",
    "data_wait_share": "Share of the time in which the first worker waited for data.",
    "mfu": "Model FLOPs utilisation: floating-point operations of the model over those the GPUs could do.",
}


class TrainMetrics:
    """Gauges `raytraffic_train_<name>`, tagged by the run's folder."""

    def __init__(self, run: str) -> None:
        self._gauges = {name: Gauge(f"raytraffic_train_{name}", text, tag_keys=("run",)) for name, text in _TEXTS.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def set(self, figures: dict[str, float]) -> None:
        """Shows figures by name, and of `flops_per_second` what share that is of the device's; those that have no gauge are left out."""
        utilisation = model_flops_utilisation(figures.get("flops_per_second", 0.0), 1)
        for name, value in (figures if utilisation is None else {**figures, "mfu": utilisation}).items():
            if name in self._gauges:
                self._gauges[name].set(value)


def model_flops_utilisation(flops_per_second: float, devices: int) -> float | None:
    """Floating-point operations a second over what `devices` GPUs like this one could do in bf16; None where that is not known."""
    if not torch.cuda.is_available():
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else flops_per_second / (peak * devices)
