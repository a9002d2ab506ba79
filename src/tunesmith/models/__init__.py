"""Base models: finding, loading, running and comparing them."""
