"""Scores a folder, a list or a bucket as one batch job."""
