"""Calibration, weights and decisions, fitted on development rows."""
