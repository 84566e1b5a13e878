"""What surrounds a notebook while it runs: its profile, folders, device, Hub and records; no model and no data."""
