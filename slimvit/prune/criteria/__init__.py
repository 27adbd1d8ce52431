"""Criteria that score units: one file each."""
