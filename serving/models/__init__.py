"""Which version serves: start, updates, last known good."""
