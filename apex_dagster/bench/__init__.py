"""Measuring: the raw four writes, and the saga around them, on the same documents."""
