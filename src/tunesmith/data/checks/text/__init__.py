"""Rules that look at the text of one row."""
