"""What is kept of answers: drift window, history, shadow, feedback store."""
