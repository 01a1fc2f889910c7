"""Fit a temperature, label smoothing, CFT and RCFT."""
