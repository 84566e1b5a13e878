"""What a machine must have: how it is set up and checked, and what a run will take of it."""
