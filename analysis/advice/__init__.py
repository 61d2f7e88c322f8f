"""What `grace-opt advise` is made of: candidates, how an engine runs them, what is sure of their gain, what to do."""
