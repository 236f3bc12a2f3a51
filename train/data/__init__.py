"""Where examples come from, and the pure function from a step to its batch."""
