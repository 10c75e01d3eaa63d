"""Training: the step, the loop, callbacks, checkpoints, logs."""
