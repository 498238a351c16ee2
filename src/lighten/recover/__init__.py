"""Winning back accuracy after compression."""
