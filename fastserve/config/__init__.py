"""The job's configuration: one YAML file, one schema, every fault at once.

``load_job`` reads and checks a file, ``dump_job`` writes one. What is where: the strict
YAML reader in ``strict_yaml``, the sections and keys in ``schema``, checks over several
keys in ``checks``, and the wording of faults in ``explain`` and ``faults``.
"""

from .load import dump_job, load_job
from .schema import Job, json_schema
from .strict_yaml import dump_yaml, load_yaml

__all__ = ["Job", "dump_job", "dump_yaml", "json_schema", "load_job", "load_yaml"]
