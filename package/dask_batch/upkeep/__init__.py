"""A cache from outside: what runs, what is there, whether it is whole, and what may go."""
