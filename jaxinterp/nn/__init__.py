"""Layers, losses and baseline networks that all families share."""
