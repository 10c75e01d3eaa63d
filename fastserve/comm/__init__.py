"""How ranks talk: communicators, the ring all-reduce, and gradient sync.

This package knows arrays, never models, and loads MPI only in an MPI job.
"""

from fastserve.comm.allreduce import AllReduce
from fastserve.comm.base import Communicator
from fastserve.comm.ring import make_scratch, ring_allreduce
from fastserve.comm.single import SingleCommunicator
from fastserve.comm.sync import GradientSync
from fastserve.comm.thread import ThreadCommunicator, run_threads
from fastserve.comm.world import init, world

__all__ = [
    "AllReduce",
    "Communicator",
    "GradientSync",
    "SingleCommunicator",
    "ThreadCommunicator",
    "init",
    "make_scratch",
    "ring_allreduce",
    "run_threads",
    "world",
]
