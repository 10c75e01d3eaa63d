"""What layers are made of: parameters, kept memory, keyed random numbers."""

from fastserve.core.layer import Done, Layer, Shape, Training, is_several, nothing
from fastserve.core.memory import Array, Memory
from fastserve.core.parameter import Parameter, ParameterStore, without_initial_values
from fastserve.core.random import StepKey, generator

__all__ = [
    "Array",
    "Done",
    "Layer",
    "Memory",
    "Parameter",
    "ParameterStore",
    "Shape",
    "StepKey",
    "Training",
    "generator",
    "is_several",
    "nothing",
    "without_initial_values",
]
