"""Multiply-adds, counted three ways."""
