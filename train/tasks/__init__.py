"""What is a loss and what is a metric."""
