"""What is drawn or coloured for a reader: plots, tables and conversations; nothing is measured here."""
