"""What is under way is looked at until it ends: repeated, cancelled, mended, resolved."""
