"""Many runs of one recipe."""
