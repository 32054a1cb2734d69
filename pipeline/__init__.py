"""Builds a LeukDetect model: one file a DVC stage, run as `python -m pipeline.<stage>`."""

import os

# Set before TensorFlow is imported anywhere. oneDNN is off by default on processors without
# AVX-512 VNNI, and is worth up to 3.3 times when every layer is trained; it changes rounding only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The engine behind Keras is part of the recipe, not of the user's ~/.keras.
os.environ["KERAS_BACKEND"] = "tensorflow"
# A hospital's network: nothing phones home.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
