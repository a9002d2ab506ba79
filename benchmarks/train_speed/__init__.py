"""Training speed and memory of Tunesmith beside its peers, on one machine, in turn: `make bench-train`.

What is run stands in `configurations`; `__main__` runs it, each configuration in a process of its own.
"""
