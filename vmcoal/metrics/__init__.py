"""Prometheus metrics, named in one place."""
