"""The audit of the data before a model is loaded."""
