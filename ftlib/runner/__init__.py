"""Executes notebooks as they stand, headlessly, on several processes or cell by cell, and reports on what came out."""
