"""Forecast what a study costs."""
