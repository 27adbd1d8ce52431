"""The mathematics and the layers of dense attention."""
