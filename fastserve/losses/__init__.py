"""Losses, by Keras' names: classes, and functions that return each row's loss.

Targets ``y_true`` and outputs ``y_pred`` are (batch, ..., values) unless a class says
otherwise; ``loss(y_true, y_pred, sample_weight)`` returns the mean of the losses.
Arguments that most classes have:

- ``reduction``: 'sum_over_batch_size' ('mean') or 'sum'; a direct call also takes
  'mean_with_sample_weight' and None, which returns each row's loss.
- ``axis``: of the classes; only the last one, -1, but where the class says otherwise.
- ``name``: a label.

Shapes that don't fit raise ShapeError, labels out of range DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastserve.core.named import make
from fastserve.errors import ArgumentError
from fastserve.losses.base import SCAN, ElementwiseLoss, FunctionLoss, Loss
from fastserve.losses.crossentropy import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    SparseCategoricalCrossentropy,
)
from fastserve.losses.ctc import CTC
from fastserve.losses.hinge import CategoricalHinge, Hinge, SquaredHinge
from fastserve.losses.probabilistic import KLDivergence, Poisson
from fastserve.losses.regression import (
    CosineSimilarity,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
)
from fastserve.losses.segmentation import Dice, Tversky
from fastserve.losses.targets import (
    Targets,
    check_labels,
    row_count,
    spread_weights,
)

Function = Callable[..., Any]
_OF_FUNCTION: dict[Function, type[Loss]] = {}


def _function(cls: type[Loss], name: str) -> Function:
    """Return the function ``name`` that gives each loss, without a reduction."""

    def function(y_true: Any, y_pred: Any, **arguments: Any) -> Any:
        return cls(**arguments, reduction=None)(y_true, y_pred)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"Return each row's loss of ``{cls.__name__}``, which has the ``arguments``."
    )
    _OF_FUNCTION[function] = cls
    return function


binary_crossentropy = _function(BinaryCrossentropy, "binary_crossentropy")
binary_focal_crossentropy = _function(
    BinaryFocalCrossentropy, "binary_focal_crossentropy"
)
categorical_crossentropy = _function(
    CategoricalCrossentropy, "categorical_crossentropy"
)
categorical_focal_crossentropy = _function(
    CategoricalFocalCrossentropy, "categorical_focal_crossentropy"
)
categorical_hinge = _function(CategoricalHinge, "categorical_hinge")
cosine_similarity = _function(CosineSimilarity, "cosine_similarity")
ctc = _function(CTC, "ctc")
dice = _function(Dice, "dice")
hinge = _function(Hinge, "hinge")
huber = _function(Huber, "huber")
kl_divergence = _function(KLDivergence, "kl_divergence")
log_cosh = _function(LogCosh, "log_cosh")
mean_absolute_error = _function(MeanAbsoluteError, "mean_absolute_error")
mean_absolute_percentage_error = _function(
    MeanAbsolutePercentageError, "mean_absolute_percentage_error"
)
mean_squared_error = _function(MeanSquaredError, "mean_squared_error")
mean_squared_logarithmic_error = _function(
    MeanSquaredLogarithmicError, "mean_squared_logarithmic_error"
)
poisson = _function(Poisson, "poisson")
sparse_categorical_crossentropy = _function(
    SparseCategoricalCrossentropy, "sparse_categorical_crossentropy"
)
squared_hinge = _function(SquaredHinge, "squared_hinge")
tversky = _function(Tversky, "tversky")

NAMED: dict[str, type[Loss]] = {
    **{function.__name__: cls for function, cls in _OF_FUNCTION.items()},
    **{cls.__name__: cls for cls in _OF_FUNCTION.values()},
    "huber_loss": Huber,
    "logcosh": LogCosh,
    "kullback_leibler_divergence": KLDivergence,
}
for _alias, _cls in {
    "bce": BinaryCrossentropy,
    "kld": KLDivergence,
    "mae": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError,
    "mse": MeanSquaredError,
    "msle": MeanSquaredLogarithmicError,
}.items():
    NAMED[_alias] = NAMED[_alias.upper()] = _cls


def get(loss: str | Loss | type[Loss] | Function | Mapping[str, Any]) -> Loss:
    """Return a loss by Keras' name, from its class, or around a plain function.

    Also takes ``{"Huber": {"delta": 2.0}}``. Raises UnknownNameError for other names,
    ArgumentError for other objects.
    """
    made = make("loss", loss, NAMED)
    if isinstance(made, Loss):
        return made
    if callable(made):
        cls = _OF_FUNCTION.get(made)
        return FunctionLoss(made) if cls is None else cls()
    raise ArgumentError(
        "expected a loss's name, a Loss, or a function of (y_true, y_pred)",
        repr(loss),
        "for example loss='categorical_crossentropy'",
    )


__all__ = [
    "CTC",
    "NAMED",
    "SCAN",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "Dice",
    "ElementwiseLoss",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Targets",
    "Tversky",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "check_labels",
    "cosine_similarity",
    "ctc",
    "dice",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "row_count",
    "sparse_categorical_crossentropy",
    "spread_weights",
    "squared_hinge",
    "tversky",
]
