"""What is the user's code, what it reaches, and how it travels by value."""
