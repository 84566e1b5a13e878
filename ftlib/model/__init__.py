"""What a gpt-oss is, says and learns: its shape, its replies and their measure, its adapter up to the Hub."""
