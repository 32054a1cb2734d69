"""What every request passes: connections, middleware, keys and rates, upload, deadline."""
