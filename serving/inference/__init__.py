"""From bytes to a prediction: decode pool, engine, answer."""
