"""What a trial trains: fusion models, their cost, and the training loop."""
