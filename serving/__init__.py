"""Serves a LeukDetect model file. Imports no TensorFlow, no pandas, nothing of `pipeline`."""
