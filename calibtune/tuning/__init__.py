"""Fitting: temperature, label smoothing, CFT and RCFT."""
