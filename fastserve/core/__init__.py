"""What layers are made of: parameters, kept memory, keyed random numbers."""

from fastserve.core.gradient_check import gradient_error
from fastserve.core.layer import Done, Layer, Shape, Training, is_several, nothing
from fastserve.core.memory import Array, Memory
from fastserve.core.parameter import (
    Parameter,
    ParameterStore,
    at_most,
    without_initial_values,
)
from fastserve.core.random import StepKey, generator
from fastserve.core.tensor import Node, Tensor

__all__ = [
    "Array",
    "Done",
    "Layer",
    "Memory",
    "Node",
    "Parameter",
    "ParameterStore",
    "Shape",
    "StepKey",
    "Tensor",
    "Training",
    "at_most",
    "generator",
    "gradient_error",
    "is_several",
    "nothing",
    "without_initial_values",
]
