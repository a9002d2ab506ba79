"""Rows compared with each other: duplicates within train, leakage into evaluation sets."""
