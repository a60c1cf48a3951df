"""What a model costs before it is built: parameters, tokens and floating-point operations, and what devices can do; needs no torch.

FLOPs are those of the network's matrix products, a multiplication and an addition counting two (as in torch's FlopCounterMode); what is
done entry by entry, scaling and kriging among it, is left out, and so is what is computed twice to save memory:

    linear layer     forward 2 m k n    backward 2 m k n for its weight, 2 m k n for its input unless that is data
    attention        forward 4 l l d    backward 8 l l d

for m rows from k to n features, and l tokens of d features. A model's formula lies in its folder (raytraffic.registry).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "Part", "attention", "linear", "peak_flops"]

#: Dense bf16 floating-point operations a second of one device, by a part of its name (makers' data sheets); the first match counts.
_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model holds, and what it computes for one window.

    `embedding_parameters` are those of the layers that turn inputs into tokens and condition vectors, a part of `parameters`.
    `training_flops` are those of one forward and one backward pass.
    """

    parameters: int
    embedding_parameters: int
    forward_flops: float
    training_flops: float
    tokens: int

    @property
    def body_parameters(self) -> int:
        """Parameters without the embeddings: the N of most scaling laws."""
        return self.parameters - self.embedding_parameters


@dataclass(frozen=True)
class Part:
    """Parameters of a part of a model, and its FLOPs for one window; parts add up, and repeat by `*`."""

    parameters: int = 0
    forward_flops: float = 0.0
    training_flops: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(
            self.parameters + other.parameters,
            self.forward_flops + other.forward_flops,
            self.training_flops + other.training_flops,
        )

    def __mul__(self, times: int) -> Part:
        return Part(times * self.parameters, times * self.forward_flops, times * self.training_flops)


def linear(fan_in: int, fan_out: int, rows: float, *, of_data: bool = False) -> Part:
    """A linear layer with bias on `rows` rows a window; the gradient of its input is not computed where it is `of_data`."""
    forward = 2 * rows * fan_in * fan_out
    return Part(fan_out * (fan_in + 1), forward, forward * (2 if of_data else 3))


def attention(tokens: int, hidden: int) -> Part:
    """What mixes the tokens of one window (scores and weighted values over all heads), without the projections around it."""
    forward = 4 * tokens**2 * hidden
    return Part(0, forward, 3 * forward)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOPs a second of a device by its name, as torch.cuda.get_device_name says it; None where that is not known."""
    return next((peak for part, peak in _PEAK.items() if part in device_name), None)
