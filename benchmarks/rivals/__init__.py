"""What others write or offer for the same task, measured beside the pipeline."""
