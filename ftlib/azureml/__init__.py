"""Azure ML: the machines that can be rented there."""
