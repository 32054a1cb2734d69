"""Figures, drawn with matplotlib; nothing else in the pipeline loads it."""
