"""Starts jobs: plans the command line, runs it, and says what became of it.

Nothing here imports NumPy or MPI: the environment must be set before they load.
"""
