"""Drawing images: the student's own samplers, and a stock pipeline's call."""
