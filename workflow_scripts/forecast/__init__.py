"""Forecast the cost of a study."""
