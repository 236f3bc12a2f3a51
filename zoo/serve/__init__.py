"""Trained models over HTTP: `python -m zoo serve`."""
