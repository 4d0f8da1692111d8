"""Runs that end in tables and pictures."""
