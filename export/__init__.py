"""From a trained model to a file a device can run, and the proof that nothing was lost."""
