"""Documents that answers are looked up in: read, split, indexed, found again, put before a question, and compared with what was answered."""
