"""What ``fastserve bench`` measures."""
