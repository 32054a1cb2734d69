"""What clients ask: predict, explain, feedback, health, status, admin, the Open Inference Protocol."""
