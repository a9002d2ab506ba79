"""Adapters: attaching them to a model, saving and loading them with their contract."""
