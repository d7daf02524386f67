"""Where both doors meet: requests are handed over, and what comes of them is followed."""
