"""Studies that anyone can run again. No library code."""
