"""From evidence to verdict to what follows of it: pure, but for the words of an error."""
