"""One model of base and adapter: written in three formats, checked, and served."""
