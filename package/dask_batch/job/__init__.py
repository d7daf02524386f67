"""What runs inside a job. Imports the cache, the travelled code and the words; nothing of a client."""
