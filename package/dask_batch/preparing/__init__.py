"""What happens in the calling thread: a graph or a call becomes jobs that are ready to go."""
