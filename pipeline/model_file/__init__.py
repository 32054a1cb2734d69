"""What goes into a model file: graph, calibration, INT8, drift reference, similar cases, prediction sets."""
