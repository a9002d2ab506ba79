"""Many requests and many adapters on one base model, in steps of packed tokens; `engine.Engine` is the entrance."""
