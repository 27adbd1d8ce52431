"""Dense attention: every attention block also attends over the values of the earlier blocks of its stage."""
