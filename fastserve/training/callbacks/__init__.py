"""Callbacks: what ``fit`` tells others at each moment, by Keras' names."""

from fastserve.training.callbacks.base import (
    Callback,
    CallbackList,
    History,
    LambdaCallback,
    Logs,
    Monitor,
)
from fastserve.training.callbacks.logs import CSVLogger, TensorBoard
from fastserve.training.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
from fastserve.training.callbacks.saving import BackupAndRestore, ModelCheckpoint
from fastserve.training.callbacks.stopping import EarlyStopping, TerminateOnNaN

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "Logs",
    "ModelCheckpoint",
    "Monitor",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
]
