"""What a run measured, as a record, tables and pictures."""
