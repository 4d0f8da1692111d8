"""Data on their way to a step: checked, read where they lie, known again."""
