"""Figures: contribution maps, curves, and the HTML page."""
