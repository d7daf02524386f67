"""What is on record about a run and its keys, and what the batch system says of them."""
