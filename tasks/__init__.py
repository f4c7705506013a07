"""What is done: plain functions on frames, archives, samples, forecasts, products and scores."""
