"""Measures a model; draws nothing."""
