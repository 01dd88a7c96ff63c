"""Theon: exact learning metrics from an LMS log, in the background."""

__version__ = "0.1.0"
