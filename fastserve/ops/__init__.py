"""Pure array functions with ``out=``: no classes, no state, no memory of their own."""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it isn't keras.ops: use "
        "NumPy's functions on arrays and layers on tensors, see docs/from-keras.md"
    )
