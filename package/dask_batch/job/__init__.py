"""What runs inside a job: it imports the cache and what travelled, nothing of a client."""
