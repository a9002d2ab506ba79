"""From files and hub datasets to tokenized, batched examples."""
