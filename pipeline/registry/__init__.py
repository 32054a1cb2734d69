"""MLflow: tracking, gate, versions, pyfunc, servers."""
