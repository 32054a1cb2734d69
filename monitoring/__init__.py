"""Prometheus, Alertmanager and Grafana as files; in Python, the drift report alone."""
