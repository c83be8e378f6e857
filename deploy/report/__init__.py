"""What lfd-bench writes: JSON, Markdown, CSV and one HTML page."""
