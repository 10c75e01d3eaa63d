"""The commands of ``fastserve``, a file each."""
